"""Dataset and bundle of a plan: made by the run, whole, or missing with what to put where."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from harness import bundle, dataset, pins
from harness import plan as planner
from harness.hardware import detect
from nmoe.config import Plan
from nmoe.paths import DataRoot
from tests.harness.finished_run import write_dataset

Usage = namedtuple("Usage", "total used free")
SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="a test")


def plan_of(preset: str, root: DataRoot, **flags) -> Plan:
    machine = "none" if preset == "pocket" else "h100x8"
    detection = detect(fake=SCENARIOS / f"{machine}.json")
    return planner.resolve(preset=preset, detection=detection, root=root, **flags)


def write_bundle(folder: Path) -> None:
    (folder / "eval_data" / "a").mkdir(parents=True)
    (folder / "core.yaml").write_text("icl_tasks:\n- label: x\n  dataset_uri: a/x.jsonl\n")
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nx,25\n")
    (folder / "eval_data" / "a" / "x.jsonl").write_text("{}\n")


def test_pocket_prepares_both_splits_and_its_bundle(root):
    plan = plan_of("pocket", root)
    assert dataset.problems(plan, root) == ()
    assert bundle.problems(plan, root) == ()
    train, val = dataset.prep_commands(plan, root)
    folder = root.dataset(plan.data.data_path)
    assert str(folder / "train") in train
    assert str(folder / "val") in val
    (made,) = bundle.prep_commands(plan, root)
    assert str(root.bundle("pocket_bundle")) in made


def roomy(monkeypatch, free: int = 10**12) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


def test_official_data_is_prepared_by_the_run_when_it_is_missing(root, monkeypatch):
    roomy(monkeypatch)
    plan = plan_of("super", root)
    (command,) = dataset.prep_commands(plan, root, mirror="http://mirror")
    assert "prep-speedrun" in command
    assert command[-2:] == ("--mirror", "http://mirror")
    (problem,) = dataset.problems(plan, root)
    assert not problem.is_blocking
    assert str(root.path / "speedrun") in problem.what
    assert "karpathy/fineweb-edu-100b-shuffle" in problem.what
    assert "18.8 GiB" in problem.what
    assert "n prep data --from FOLDER" in problem.fix


def test_official_data_is_refused_when_the_disk_cannot_hold_it(root, monkeypatch):
    roomy(monkeypatch, free=10**10)
    (problem,) = dataset.problems(plan_of("super", root), root)
    assert problem.exit_code == 3
    assert "got 9.31 GiB free, expected 18.8 GiB" in problem.what


def test_shards_that_are_there_need_no_room(root, monkeypatch):
    train = root.dataset("speedrun") / "train"
    train.mkdir(parents=True)
    with (train / "shard_00000.npy").open("wb") as file:
        file.truncate(15 * 10**9)
    roomy(monkeypatch, free=10**10)
    (problem,) = dataset.problems(plan_of("super", root), root)
    assert not problem.is_blocking
    assert "fetches 4.84 GiB of" in problem.what


def test_official_data_is_left_alone_when_it_is_there(root):
    plan = plan_of("super", root)
    for split in dataset.SPLITS:
        write_dataset(root.dataset("speedrun") / split)
    assert dataset.prep_commands(plan, root) == ()


def test_named_data_is_never_written(root, tmp_path):
    plan = plan_of("pocket", root, data=tmp_path / "mine")
    assert dataset.prep_commands(plan, root) == ()
    assert len(dataset.problems(plan, root)) == 2


def test_shard_is_reported_when_it_is_missing(root):
    plan = plan_of("super", root)
    for split in dataset.SPLITS:
        write_dataset(root.dataset("speedrun") / split)
    problem = dataset.problems(plan, root)[0]
    assert problem.exit_code == 4
    assert "shard is missing" in problem.what
    assert "shard_00000.npy" in problem.what


def test_broken_manifest_is_reported_even_where_the_run_prepares_its_data(root):
    plan = plan_of("pocket", root)
    folder = root.dataset(plan.data.data_path) / "train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"name": "torn')
    (problem,) = dataset.problems(plan, root)
    assert problem.exit_code == 4
    assert "broken manifest" in problem.what
    assert "prepare it again" in problem.what


def test_folder_left_by_an_interrupted_preparation_is_no_problem(root):
    plan = plan_of("pocket", root)
    (root.dataset(plan.data.data_path) / "train").mkdir(parents=True)
    assert dataset.problems(plan, root) == ()


def test_tokens_of_another_kind_are_refused(root):
    for split in dataset.SPLITS:
        write_dataset(root.dataset("pocket/python-{python}") / split)
    plan = plan_of("pocket", root)
    assert dataset.problems(plan, root) == ()
    other = replace(plan, data=replace(plan.data, tokenizer="gpt2"))
    assert "got byte, expected gpt2" in dataset.problems(other, root)[0].what


def test_text_shorter_than_a_window_is_refused(root):
    for split in dataset.SPLITS:
        write_dataset(root.dataset("pocket/python-{python}") / split)  # 1000 tokens
    plan = plan_of("pocket", root, overrides=["train.seq_len=1000"])
    assert "too short: got 1000 tokens, expected 1001" in dataset.problems(plan, root)[0].what


def test_official_bundle_is_fetched_by_the_run_when_it_is_missing(root):
    plan = plan_of("super", root)
    ((*_, module, output),) = bundle.prep_commands(plan, root)
    assert (module, output) == ("harness.prep", "--json")
    (problem,) = bundle.problems(plan, root)
    assert not problem.is_blocking
    assert pins.OFFICIAL_URL in problem.what
    assert "n prep eval --from FILE" in problem.fix


def test_official_bundle_is_refused_when_a_part_of_it_is_missing(root):
    write_bundle(root.bundle("eval_bundle"))
    (root.bundle("eval_bundle") / "eval_data" / "a" / "x.jsonl").unlink()
    plan = plan_of("super", root)
    assert bundle.prep_commands(plan, root) == ()
    (problem,) = bundle.problems(plan, root)
    assert problem.exit_code == 4
    assert "eval_data/a/x.jsonl" in problem.what
    assert "n prep eval" in problem.fix
    assert bundle.status(root) == "not whole"


def test_bundle_is_not_the_official_one_when_its_lists_differ(root):
    write_bundle(root.bundle("eval_bundle"))
    problems = bundle.problems(plan_of("super", root), root)
    assert [problem.exit_code for problem in problems] == [4, 4]
    assert "is not the official one" in problems[0].what


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_bundle_of_ones_own_is_whole_until_a_task_is_missing_or_empty(root, damage):
    write_bundle(root.bundle("mine"))
    plan = plan_of("super", root, overrides=["data.bundle=mine"])
    assert bundle.problems(plan, root) == ()
    damage(root.bundle("mine") / "eval_data" / "a" / "x.jsonl")
    (problem,) = bundle.problems(plan, root)
    assert "eval_data/a/x.jsonl" in problem.what


def test_real_core_bundle_lists_are_the_pinned_ones(real_data):
    found = sorted(real_data.rglob("core.yaml"))
    if not found:
        pytest.skip(f"no unpacked CORE bundle in {real_data}")
    for name, pin in bundle.PINS.items():
        assert bundle.file_digest(found[0].with_name(name)) == pin
