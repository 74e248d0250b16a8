"""The `n` command as people call it: exit codes, messages, speed, and one small run to its end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmoe.config import read_plan
from nmoe.event_log import read_events
from nmoe.events import StepEvent
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT
from tests.harness.finished_run import make_plan

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
# Far enough from the target for no luck to reach it, or near enough for every run to.
NEVER = "target.target_loss=0.01"
SOON = "target.target_loss=5.0"
SMALL = ("--set", "validation.every=10", "--set", "validation.windows=8")
DEADLINE_S = 60.0


def n(*arguments: str | Path, root: Path | None = None, **environ: str):
    """Run a verb to its end, not on a terminal."""
    env = os.environ | environ | ({"DATA_DIR": str(root)} if root else {})
    command = [sys.executable, "-P", "-m", "harness.cli", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    """A data root in which `pocket` is prepared only once."""
    return tmp_path_factory.mktemp("shared_root")


@pytest.fixture(scope="module")
def finished(shared_root):
    """A small `pocket` run that reached its target, as lines on stdout."""
    done = n(
        *("speedrun", "pocket", "--headless", "--json", "--set", SOON, *SMALL), root=shared_root
    )
    return done, shared_root


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "harness.cli", *arguments]
    return subprocess.Popen(
        command, env=os.environ | {"DATA_DIR": str(root)}, stdout=subprocess.PIPE, text=True
    )


def read_until_step(process: subprocess.Popen[str]) -> str:
    """Read event lines until training moves; the run's id."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["k"] == "step":
            return newest_run(Path(os.environ["DATA_DIR"]))
    pytest.fail("the run ended before its first step")


def newest_run(root: Path) -> str:
    return max((root / "runs").iterdir(), key=lambda path: path.stat().st_mtime).name


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["speedrun", "supr"], 2, "unknown preset 'supr'. Did you mean \"super\"?"),
        (["speedrun", "[/bold]"], 2, "unknown preset '[/bold]'. Known: dense"),
        (["speedrun", "pocket", "--set", "experts.n_expert=4"], 2, 'unknown key "n_expert"'),
        (["speedrun", "pocket", "--set", "train.steps=many"], 2, "train.steps: got str 'many'"),
        (["speedrun", "pocket", "--set", "steps=4"], 2, "expected section.key=value"),
        (["speedrun", "--steps", "many"], 2, "Invalid value for '--steps'"),
        (["train", "nowhere.toml"], 2, "config file not found"),
        (["train", "pocket"], 2, "expected a TOML file"),
        (["frobnicate"], 2, "frobnicate"),
        (["speedrun", "super"], 3, "super needs a supported GPU"),
        (["speedrun", "pocket", "--dtype", "fp8"], 3, "the CPU cannot train in fp8"),
        (["speedrun", "pocket", "--data", "/nowhere"], 4, "no dataset in /nowhere/train"),
        (["attach", "nothing"], 5, "no run 'nothing'"),
        (["attach", "last"], 5, "no runs in"),
        (["stop", "nothing"], 5, "no run 'nothing'"),
        (["resume", "nothing"], 5, "no run 'nothing'"),
        (["export", "nothing"], 5, "no run 'nothing'"),
        (["export", "/nowhere"], 5, "no folder /nowhere"),
        ([], 2, "the screen needs a terminal"),
    ],
)
def test_wrong_call_gets_one_line_and_its_exit_code(arguments, code, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = n(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("machine", "preset", "message"),
    [
        ("b200x8", None, "fp8 experts are not built yet. Run: n speedrun super --dtype bf16"),
        ("h100x8", None, "the hardware is fake"),
        ("a100x8", "super", "got compute capability 8.0"),
        ("mig", "super", "MIG mode is on for GPU 0"),
        ("driver_mismatch", "super", "reboot, or reload"),
        ("two_nodes", None, "2 nodes"),
        ("none", None, "the hardware is fake"),
    ],
)
def test_fake_machine_is_planned_and_never_trained_on(machine, preset, message, data_dir):
    fake = ("--fake-hardware", SCENARIOS / f"{machine}.json")
    done = n("speedrun", *filter(None, [preset]), "--headless", *fake)
    assert done.returncode == 3
    assert message in done.stderr
    assert not (data_dir / "runs").exists()


def test_dry_run_shows_plan_and_problems_and_starts_nothing(data_dir):
    fake = ("--fake-hardware", SCENARIOS / "b200x8.json")
    done = n("speedrun", "--dry-run", *fake)
    assert done.returncode == 0
    assert "fp8: the default of B200 (compute capability 10.0)" in done.stdout
    assert "problem: fp8 experts are not built yet" in done.stdout
    shown = json.loads(n("speedrun", "--dry-run", "--json", *fake).stdout)
    assert shown["plan"]["dtype"] == "fp8"
    assert shown["plan"]["world"] == 8
    assert not (data_dir / "runs").exists()


def test_broken_board_is_refused_before_the_run_and_left_alone(data_dir):
    board = data_dir / "LEADERBOARD.json"
    board.write_text("{torn")
    for arguments in (["speedrun", "pocket", "--headless"], ["leaderboard"]):
        done = n(*arguments)
        assert done.returncode == 4
        assert str(board) in done.stderr
    assert board.read_text() == "{torn"
    assert n("doctor", "--quick").returncode == 3
    assert not (data_dir / "runs").exists()


def test_unwritable_data_root_is_refused():
    done = n("speedrun", "pocket", "--headless", DATA_DIR="/dev/null/below")
    assert done.returncode == 3
    assert "cannot write to /dev/null/below (DATA_DIR)" in done.stderr


def test_bug_leaves_its_traceback_in_a_file(tmp_path, data_dir):
    (data_dir / "runs").write_text("a file where a folder belongs")
    script = (
        "import harness.runs, harness.cli, sys\n"
        "def broken(root): raise KeyError('[/bold]')\n"
        "harness.runs.list_runs = broken\n"
        "sys.argv = ['n', 'runs']\n"
        "harness.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    path = re.search(r"See (\S+)", done.stderr)
    assert path is not None
    assert "KeyError" in Path(path[1]).read_text()


def test_run_reaches_its_target_and_ends_with_the_result_line(finished):
    done, root = finished
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["k"] == "result"
    assert result["reached"] is True
    assert result["rank"] == 1
    listed = json.loads(n("leaderboard", "--json", root=root).stdout)
    assert [entry["entry_id"] for board in listed for entry in board["entries"]] == [
        result["entry_id"]
    ]
    assert n("leaderboard", "--verify", root=root).returncode == 0


def test_lists_show_the_finished_run(finished):
    _, root = finished
    run_id = newest_run(root)
    (row,) = json.loads(n("runs", "--json", root=root).stdout)
    assert (row["run_id"], row["status"], row["is_alive"]) == (run_id, "done", False)
    assert run_id in n("runs", root=root).stdout
    assert run_id in n("speedrun", "--leaderboard", root=root).stdout


def test_attach_replays_a_finished_run_by_the_beginning_of_its_name(finished):
    done, root = finished
    again = n("attach", newest_run(root)[:18], "--json", root=root)
    assert again.returncode == 0
    assert set(again.stdout.splitlines()) == set(done.stdout.splitlines())
    assert (
        n("attach", "last", "--json", root=root).stdout.splitlines()[-1]
        == (done.stdout.splitlines()[-1])
    )


def test_finished_run_is_neither_stopped_nor_resumed(finished):
    _, root = finished
    for verb in ("stop", "resume"):
        done = n(verb, "last", root=root)
        assert done.returncode == 5
        assert "not running" in done.stderr or "nothing to resume" in done.stderr


def test_finished_run_is_scored_again_and_compared_with_itself(finished, tmp_path):
    done, root = finished
    out = tmp_path / "core.json"
    again = n("eval", "core", "--run", "last", "--out", out, "--json", root=root)
    assert again.returncode == 0, again.stderr
    own = [json.loads(line) for line in done.stdout.splitlines()]
    (score,) = [event["score"] for event in own if event["k"] == "core"]
    assert json.loads(again.stdout) == json.loads(out.read_text())
    assert json.loads(out.read_text())["core"] == score
    compared = n("eval", "compare", "last", tmp_path / "core.items.jsonl", "--json", root=root)
    total = json.loads(compared.stdout)["total"]
    assert (total["only_a"], total["only_b"], total["p"]) == (0, 0, 1.0)
    assert total["acc_a"] == total["acc_b"]
    shown = n("eval", "compare", "last", "last", root=root)
    total, core = shown.stdout.splitlines()[-2:]
    assert total.split()[0] == "total"
    assert core.endswith("B - A 0.0000 [0.0000, 0.0000]")


def test_eval_refuses_what_it_cannot_score(finished, tmp_path):
    _, root = finished
    for arguments, code, message in (
        (("core",), 2, "name either --run or --checkpoint"),
        (("core", "--run", "last", "--checkpoint", tmp_path), 2, "name either"),
        (("core", "--run", "nobody"), 5, "no run 'nobody'"),
        (("core", "--checkpoint", tmp_path), 5, "cannot be read"),
        (("core", "--run", "last", "--cap", "-3"), 2, "--cap"),
        (("compare", "last", tmp_path / "none"), 5, "no run"),
    ):
        done = n("eval", *arguments, root=root)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_run_that_misses_its_target_ends_with_6(shared_root):
    done = n(
        *("speedrun", "pocket", "--headless", "--steps", "10", "--set", NEVER, *SMALL),
        root=shared_root,
    )
    assert done.returncode == 6
    assert "missed" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["reached"] is False


def test_run_is_stopped_by_ctrl_c_and_resumed_to_its_end(shared_root, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(shared_root))
    flags = ("--steps", "3000", "--set", NEVER, "--set", "validation.windows=8")
    process = start(shared_root, "speedrun", "pocket", "--json", *flags)
    run_id = read_until_step(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    folder = DataRoot(path=shared_root, reason="a test").run(run_id)
    assert any(folder.checkpoints.iterdir())
    stopped_at = last_step(folder.train)

    process = start(shared_root, "resume", run_id, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["k"] == "step" and event["step"] > stopped_at:
            break
    process.kill()  # the viewer dies, the run does not
    process.wait()
    assert n("stop", run_id, root=shared_root).returncode == 0
    assert last_step(folder.train) > stopped_at
    (row,) = [
        row
        for row in json.loads(n("runs", "--json", root=shared_root).stdout)
        if row["run_id"] == run_id
    ]
    assert (row["status"], row["attempt"]) == ("interrupted", 1)


def last_step(path: Path) -> int:
    return max(
        record.event.step for record in read_events(path) if isinstance(record.event, StepEvent)
    )


def test_named_seed_and_ranks_stand_in_the_plan(tmp_path):
    done = n("speedrun", "pocket", "--dry-run", "--json", "--seed", "5", "--gpus", "2")
    shown = json.loads(done.stdout)["plan"]
    (tmp_path / "plan.json").write_text(json.dumps(shown))
    plan = read_plan(tmp_path / "plan.json")
    assert (plan.train.seed, plan.world, plan.device) == (5, 2, "cpu")


def test_lists_end_quietly_when_their_reader_leaves(data_dir):
    for index in range(300):
        run = make_plan(f"pocket-20260101-000000-{index:04x}")
        folder = DataRoot(path=data_dir, reason="a test").run(run.run_id)
        folder.root.mkdir(parents=True)
        folder.plan.write_text(run.to_json())
    command = f"{sys.executable} -P -m harness.cli runs | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("RUN")
    assert done.stderr == ""


def test_doctor_names_a_fix_beside_what_is_wrong():
    fake = ("--fake-hardware", SCENARIOS / "driver_mismatch.json")
    rows = json.loads(n("doctor", "--json", *fake).stdout)
    (gpu,) = [row for row in rows if row["name"] == "gpu"]
    assert gpu["verdict"] == "note"
    assert "reboot" in gpu["fix"]
    assert any(row["name"] == "data root" for row in rows)
