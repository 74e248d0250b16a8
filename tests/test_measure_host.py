"""The script that measures a whole host: what it calls, in which order, and when it ends."""

import os
import subprocess
from pathlib import Path

import pytest

from bench import __main__ as bench
from tests.conftest import REPO_ROOT

SCRIPT = REPO_ROOT / "scripts" / "measure_host.sh"
COMMIT = "0123456789abcdef"


@pytest.fixture
def host(tmp_path: Path):
    """The script on a host of eight GPUs, with a Python that only writes down what it is asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    programs = {
        "nvidia-smi": 'case "$*" in --list-gpus) label=GPU;; *) label=;; esac;'
        ' for i in 0 1 2 3 4 5 6 7; do echo "${label:+GPU $i: }NVIDIA H200"; done',
        "recorder": f'echo "$*" >> {tmp_path}/calls; case "$*" in *"$FAILS"*) exit 1;; esac',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    def run(*args: str, path: str = f"{tools}:{os.environ['PATH']}", fails: str = "nothing"):
        out = ("--out", str(tmp_path / "out"), "--commit", COMMIT)
        command = ["sh", str(SCRIPT), "--python", str(tools / "recorder"), *out, *args]
        env = os.environ | {"PATH": path, "FAILS": fails}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_results_are_proved_before_they_are_timed_on_all_gpus(host, tmp_path: Path) -> None:
    done, calls = host()

    assert done.returncode == 0, done.stderr
    assert calls[0].startswith("-m pytest")
    for path in ("tests/rdep/test_device.py", "tests/test_train_gpu.py"):
        assert path in calls[0]
        assert (REPO_ROOT / path).is_file()
    measured = [bench._parser().parse_args(call.split()[2:]) for call in calls[1:]]
    assert [options.noun for options in measured] == ["transport", "step", "step", "step"]
    assert [options.presets for options in measured[1:]] == ["super", "moe", "ultra"]
    assert {options.gpus for options in measured} == {8}
    assert {options.commit for options in measured} == {COMMIT}
    files = [options.rows for options in measured]
    assert len(set(files)) == 4
    assert files[1] == tmp_path / "out" / "step-super-nvidia-h200-x8-0123456.jsonl"


def test_nothing_is_timed_once_results_are_wrong(host) -> None:
    done, calls = host(fails="pytest")

    assert done.returncode != 0
    assert len(calls) == 1


def test_named_parts_alone_are_measured(host) -> None:
    _, calls = host("moe")

    assert ["--presets moe" in call for call in calls] == [True]


@pytest.mark.parametrize(
    ("args", "words"),
    [(("mo",), "unknown part mo. Known: check"), (("--gpus", "4"), "unknown option --gpus")],
)
def test_what_it_does_not_know_is_refused_before_anything_runs(host, args, words) -> None:
    done, calls = host(*args)

    assert done.returncode == 2
    assert words in done.stderr
    assert calls == []


def test_host_without_gpus_is_refused(host, tmp_path: Path) -> None:
    done, calls = host(path=os.defpath)

    assert done.returncode == 2
    assert "found 0 GPU(s), expected two or more" in done.stderr
    assert calls == []
