"""The memory of a step by arithmetic, against the peaks that the benchmark kept."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.rows import Row, load
from bench.runs import preset_file
from nmoe.config import Config, read_config, with_train
from nmoe.dist import World
from nmoe.memory import USABLE, estimate, fit_micro_batch
from nmoe.standalone import make_plan
from tests.conftest import REPO_ROOT

H100, H200 = 85_520_809_984, 150_110_011_392
# Peaks of the official step, and the sequences of its micro-batches.
MEASURED = [
    ("step-nvidia-h200-x1-a5e5abb.jsonl", "super", 32),
    ("step-nvidia-h200-x1-a5e5abb.jsonl", "dense", 32),
    ("step-nvidia-h200-x1-a5e5abb.jsonl", "ultra, 1 layer", 16),
    ("step-nvidia-h100-80gb-hbm3-x1-a5e5abb.jsonl", "super", 16),
    ("step-nvidia-h100-80gb-hbm3-x1-a5e5abb.jsonl", "moe", 32),
    ("step-nvidia-h100-80gb-hbm3-x2-bb40e7c.jsonl", "super", 32),
]


def config_of(shape: str, *, micro_batch: int = 32, more: tuple[str, ...] = ()) -> Config:
    preset, _, layers = shape.partition(", ")
    if found := re.match(r"\d+", layers):
        more = (*more, f"model.num_layers={found[0]}")
    overrides = ["train.dtype=bf16", f"train.micro_batch={micro_batch}", *more]
    return read_config(preset_file(preset), overrides=overrides)


def peak(file: str, shape: str) -> Row:
    rows = load(REPO_ROOT / "bench" / "results" / file)
    (row,) = [each for each in rows if (each.what, each.shape) == ("step peak memory", shape)]
    return row


@pytest.mark.parametrize(("file", "shape", "micro_batch"), MEASURED)
def test_estimate_is_near_the_measured_peak(file: str, shape: str, micro_batch: int):
    row = peak(file, shape)
    assert row.rate is not None
    found = estimate(config_of(shape, micro_batch=micro_batch), world=row.machine.gpus)
    # what peers write is not torch's allocator's
    assert found.total - found.peers == pytest.approx(1e9 * row.rate, rel=0.03)


@pytest.mark.parametrize(
    ("preset", "world", "memory", "expected"),
    [
        ("super", 1, H200, 32),
        ("super", 1, H100, 16),
        ("super", 2, H100, 32),
        ("super", 4, H100, 32),
        ("super", 8, H100, 32),
        ("dense", 1, H100, 32),
        ("moe", 1, H100, 32),
        ("super", 1, None, 32),
    ],
)
def test_micro_batch_is_the_largest_that_fits(
    preset: str, world: int, memory: int | None, expected: int
):
    fitted = fit_micro_batch(config_of(preset), world, memory)
    assert fitted.train.micro_batch == expected
    assert replace(fitted, train=config_of(preset).train) == config_of(preset)
    if memory is not None:
        assert estimate(fitted, world=world).total <= USABLE * memory


def test_micro_batch_divides_the_share_and_never_exceeds_it():
    config = config_of("super", more=("train.batch_size=24",))
    assert fit_micro_batch(config, 1, H200).train.micro_batch == 24
    assert fit_micro_batch(config, 4, H200).train.micro_batch == 6
    tight = estimate(with_train(config, micro_batch=6), world=1).total / USABLE
    assert fit_micro_batch(config, 1, int(tight) + 1).train.micro_batch == 6
    assert fit_micro_batch(config, 1, int(tight * 0.99)).train.micro_batch == 4


def test_plan_is_fitted_through_sizes_that_it_could_not_have():
    """A plan refuses a micro-batch that does not divide its batch: none is tried on the way."""
    overrides = ("train.batch_size=64", "train.dtype=bf16", "model.impl=reference")
    plan = make_plan(preset_file("super"), overrides=overrides, world=World(rank=0, size=1))
    plan = replace(plan, model=replace(plan.model, impl="triton"))
    assert fit_micro_batch(plan, 1, H100).train.micro_batch == 16


def test_micro_batch_of_the_preset_stays_when_nothing_fits():
    assert fit_micro_batch(config_of("ultra"), 1, H100).train.micro_batch == 32


def test_cpu_run_is_limited_by_its_share_only(tmp_path: Path):
    config = read_config(preset_file("pocket"))
    assert fit_micro_batch(config, 1, 1).train.micro_batch == min(
        config.train.micro_batch, config.train.batch_size
    )


def test_muon_needs_less_than_adamw_and_ranks_share_the_experts():
    adamw, muon = config_of("super"), config_of("super", more=("optim.matrices=muon",))
    assert estimate(muon, world=1).state < estimate(adamw, world=1).state
    assert estimate(adamw, world=8).state < estimate(adamw, world=1).state / 4
