"""What stands between a plan and its run: each bad day with its message and exit code."""

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from harness import launch, leaderboard, preflight
from harness import plan as planner
from harness.errors import Problem
from harness.hardware import detect
from nmoe.config import Plan
from nmoe.flops import count_parameters, padded_vocab
from nmoe.paths import DataRoot
from tests.harness.finished_run import make_plan

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="a test")


def examine(machine: str, root: DataRoot, preset: str, **flags) -> tuple[Problem, ...]:
    detection = detect(fake=SCENARIOS / f"{machine}.json")
    plan = planner.resolve(preset=preset, detection=detection, root=root, **flags)
    return preflight.problems(plan, detection, root)


def pocket_problems(root: DataRoot, **flags) -> tuple[Problem, ...]:
    """Problems of `pocket` on this machine, without those that say so of the machine itself."""
    detection = replace(detect(), problems=())
    plan = planner.resolve(preset="pocket", detection=detection, root=root, **flags)
    return preflight.problems(plan, detection, root)


def blocking(problems: tuple[Problem, ...]) -> list[tuple[int, str]]:
    return [(problem.exit_code, problem.what) for problem in problems if problem.is_blocking]


def test_pocket_can_start_in_an_empty_data_root(root):
    assert blocking(pocket_problems(root)) == []
    assert not (root.path / "runs").exists()  # looking changes nothing


def test_fake_hardware_is_shown_but_never_trained_on(root):
    found = blocking(examine("none", root, "pocket"))
    assert found[0][0] == 3
    assert "fake" in found[0][1]


def test_fp8_is_refused_with_the_command_to_use(root):
    problems = examine("b200x8", root, "super")
    (problem,) = [each for each in problems if "fp8 experts" in each.what]
    assert str(problem.error()) == (
        "fp8 experts are not built yet. Run: n speedrun super --dtype bf16"
    )
    assert problem.exit_code == 3


def test_more_gpus_than_were_measured_are_a_warning(root):
    for hardware, expected in (("h100x8", 1), ("h200x1", 0)):
        found = [each for each in examine(hardware, root, "super") if "never run" in each.what]
        assert len(found) == expected
        assert not any(problem.is_blocking for problem in found)


@pytest.mark.parametrize(
    ("override", "is_refused"),
    [
        ("attention.attn=mla", True),
        ("attention.attn_local=nsa", False),  # every layer is global by default
        ("attention.attn_global_every=4", True),  # then the local ones are swa
    ],
)
def test_attention_is_refused_when_a_layer_uses_one_that_is_not_built(override, is_refused, root):
    found = blocking(pocket_problems(root, overrides=[override]))
    assert any("is not built yet" in what for _, what in found) == is_refused


def test_data_root_is_refused_when_it_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    root = DataRoot(path=tmp_path / "file" / "below", reason="DATA_DIR")
    found = blocking(pocket_problems(root))
    assert found[0][0] == 3
    assert "cannot write to" in found[0][1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_data_root_is_refused_when_it_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    found = blocking(pocket_problems(DataRoot(path=tmp_path / "data", reason="DATA_DIR")))
    assert "cannot write to" in found[0][1]


def test_disk_is_refused_when_checkpoints_would_not_fit(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 10**6))
    found = blocking(pocket_problems(root))
    assert found[0][0] == 3
    assert "nearly full: got 977 KiB free" in found[0][1]


def test_disk_needs_no_room_for_checkpoints_that_are_never_due(root, monkeypatch):
    # a state of 12 bytes a parameter and the weights at the target fit, four states do not
    free = 28 * count_parameters(make_plan(), padded_vocab(257)).total
    monkeypatch.setattr(preflight, "SPARE_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, free))
    never, often = (pocket_problems(root, overrides=[f"checkpoint.every={n}"]) for n in (0, 100))
    assert blocking(never) == []
    assert "nearly full" in blocking(often)[0][1]


def test_broken_board_is_refused_before_the_run(root):
    root.board.write_text('{"format": 1, "entries"')
    found = blocking(pocket_problems(root))
    assert found[0][0] == 4
    assert str(root.board) in found[0][1]
    assert root.board.read_text() == '{"format": 1, "entries"'


def test_small_shared_memory_is_refused_when_ranks_must_meet_there(root, monkeypatch):
    real = shutil.disk_usage
    small = Usage(1 << 16, 0, 1 << 16)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: small if path == preflight.SHM else real(path)
    )
    assert blocking(pocket_problems(root)) == []
    found = blocking(pocket_problems(root, gpus=2))
    assert found[0][0] == 3
    assert "/dev/shm is too small for 2 ranks" in found[0][1]


def test_memory_is_only_a_warning_when_an_estimate_does_not_fit(root, monkeypatch):
    monkeypatch.setattr(preflight, "_available_bytes", lambda: 1 << 20)
    problems = pocket_problems(root)
    assert blocking(problems) == []
    assert any("memory may not suffice" in problem.what for problem in problems)


def test_host_memory_must_hold_a_checkpoint_of_the_gpus(root, monkeypatch):
    detection = detect(fake=SCENARIOS / "h200x1.json")
    plan = planner.resolve(preset="super", detection=detection, root=root)
    plan = replace(plan, hardware=replace(plan.hardware, is_fake=False))
    found = [[], []]
    for index, free in enumerate((20 << 30, 40 << 30)):  # 2.8 billion parameters at 12 bytes
        monkeypatch.setattr(preflight, "_available_bytes", lambda free=free: free)
        problems = preflight.problems(plan, detection, root)
        found[index] = [each for each in problems if "host memory may not" in each.what]
    assert [problem.is_blocking for problem in found[0]] == [False]
    assert found[1] == []


def test_experts_that_may_not_fit_a_gpu_are_a_warning(root):
    problems = examine("h200x1", root, "ultra")
    (problem,) = [each for each in problems if "may not fit" in each.what]
    assert not problem.is_blocking
    assert not any("may not fit" in each.what for each in examine("b200x8", root, "ultra"))


def live_run(root: DataRoot) -> tuple[Plan, int]:
    plan = make_plan()
    folder = root.run(plan.run_id)
    folder.root.mkdir(parents=True)
    folder.plan.write_text(plan.to_json())
    return plan, launch.take_run_lock(folder)


def test_another_live_run_is_a_warning(root):
    plan, lock = live_run(root)
    problems = pocket_problems(root)
    os.close(lock)
    assert blocking(problems) == []
    (problem,) = [each for each in problems if "another run is alive" in each.what]
    assert plan.run_id in problem.what
    assert not any("another run" in each.what for each in pocket_problems(root))


def test_blocking_problems_come_first(root):
    _, lock = live_run(root)
    root.board.write_text("no board")
    problems = pocket_problems(root)
    os.close(lock)
    assert problems[0].is_blocking
    assert preflight.first_blocking(problems) is problems[0]


def test_tracked_board_parses():
    assert leaderboard.load(leaderboard.REPO_BOARD).published
