"""Training again: what agrees, what is judged where rounding grows, what cannot be told."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from nmoe import retrain
from nmoe.config import read_plan
from nmoe.paths import DataRoot
from nmoe.retrain import compare, cut_differently, on_one_rank
from tests import tiny

RECORDED = {10: 8.0, 20: 6.6}
BF16 = 0.03


def test_losses_that_are_found_again_agree():
    found = compare(RECORDED, {10: 8.01, 20: 6.59}, tolerance=BF16)
    assert (found.holds, found.steps) == (True, 20)
    assert found.worst == pytest.approx(0.01)


def test_losses_that_two_trainings_agree_upon_are_judged_whole():
    once, twice = {10: 8.0, 20: 6.8}, {10: 8.001, 20: 6.801}
    found = compare(RECORDED, once, twice, tolerance=BF16)
    assert (found.holds, found.steps) == (False, 20)
    assert found.worst == pytest.approx(0.2)
    assert "at step 20" in found.reason


def test_losses_are_judged_up_to_where_two_trainings_part():
    once, twice = {10: 8.0, 20: 6.9}, {10: 8.001, 20: 6.5}
    found = compare(RECORDED, once, twice, tolerance=BF16)
    assert (found.holds, found.steps, found.worst) == (True, 10, 0.0)
    assert "at step 20 two trainings are 0.4 apart by rounding alone" in found.reason


def test_lie_before_the_trainings_part_is_found():
    once, twice = {10: 8.2, 20: 6.9}, {10: 8.201, 20: 6.5}
    assert compare(RECORDED, once, twice, tolerance=BF16).holds is False


def test_nothing_is_told_where_trainings_part_at_once():
    found = compare(RECORDED, {10: 8.2, 20: 6.9}, {10: 9.0, 20: 6.5}, tolerance=BF16)
    assert (found.holds, found.steps) == (None, None)


@pytest.mark.parametrize("again", [{10: 8.0}, {10: 8.0, 20: math.nan}, {10: 8.0, 20: math.inf}])
def test_loss_that_is_missing_or_no_number_does_not_agree(again):
    found = compare(RECORDED, again, tolerance=BF16)
    assert (found.holds, found.worst) == (False, None)


def trained_on_two_ranks(root: Path, *words: str) -> tuple[tiny.RunFolder, DataRoot]:
    tiny.write_data(root)
    args = [str(tiny.write_config(root)), "--set", "log.every=1", "--set", "eval.cap=1", *words]
    assert tiny.finish(tiny.start_ranks(args, root, world=2)) == [6, 6]
    return tiny.only_run(root), DataRoot(path=root, reason="test")


def with_loss(text: str, step: int, more: float) -> str:
    """The lines of a run with one logged loss moved."""
    lines = text.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if f'"k":"step","step":{step},' in line)
    before, rest = lines[at].split('"loss":')
    value, _, behind = rest.partition(",")
    lines[at] = f'{before}"loss":{float(value) + more},{behind}'
    return "".join(lines)


def test_run_whose_rounding_grows_is_judged_before_it_did(tmp_path):
    """Two ranks at a rate that makes rounding grow: honest is honest, and an early lie is found."""
    rates = [w for n in ("dense", "router", "expert") for w in ("--set", f"optim.lr_{n}=0.5")]
    folder, root = trained_on_two_ranks(tmp_path, *rates, "--set", "optim.lr_muon=0.5")
    plan = read_plan(folder.plan)

    honest = retrain.retrain(plan, folder, root, steps=20)

    assert honest.holds, honest.reason
    assert "by rounding alone" in honest.reason
    assert honest.steps
    folder.train.write_text(with_loss(folder.train.read_text(), 1, 0.01))
    lie = retrain.retrain(plan, folder, root, steps=20)
    assert (lie.holds, lie.worst) == (False, pytest.approx(0.01, rel=0.1))


def test_model_that_one_gpu_cannot_hold_is_not_judged(tmp_path, monkeypatch):
    folder, root = trained_on_two_ranks(tmp_path, "--set", "train.steps=2")

    def no_room(*_args: object, **_words: object) -> None:
        raise retrain.torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(retrain, "build", no_room)
    found = retrain.retrain(read_plan(folder.plan), folder, root, steps=20)
    assert (found.holds, found.reason) == (None, "one GPU cannot hold what 2 did")


def test_second_training_is_cut_into_halves(tmp_path):
    folder, _ = trained_on_two_ranks(tmp_path, "--set", "train.steps=2")
    alone = on_one_rank(read_plan(folder.plan), steps=2)
    assert (alone.world, alone.train.micro_batch) == (1, 2)
    halved = cut_differently(alone)
    assert halved == replace(alone, train=replace(alone.train, micro_batch=1))
    assert cut_differently(halved) == halved
