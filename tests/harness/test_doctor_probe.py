"""The doctor's child: its findings as checks, and every way in which a child can go wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import doctor, hardware
from harness.doctor import disk, probe
from harness.doctor.check import Check
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
H200 = hardware.detect(fake=SCENARIOS / "h200x2.json")
DEADLINE_S = 60.0


def machine(name: str, **environ: str) -> hardware.Detection:
    if not environ:
        return hardware.detect(fake=SCENARIOS / f"{name}.json")
    return hardware.detect(hardware.library(SCENARIOS / f"{name}.json"), environ=environ)


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def examined(code: str, *, deadline_s: float = DEADLINE_S) -> list[Check]:
    found = machine("none")
    return list(probe.examine(found, command=child(code), deadline_s=deadline_s))


def judged(*, on: str = "h200x2", **line) -> Check:
    parsed = probe.parse(json.dumps(line))
    assert parsed is not None
    return probe.judge(parsed, machine(on), {})


def kept(folder: Path, what: str, rate: float) -> Path:
    facts = {"what": f"ceiling {what}", "shape": "", "implementation": "torch", "gpus": 1}
    where = {"gpu": "NVIDIA H200", "commit": "c", "date": "2026-11-01T00:00:00"}
    (folder / "rows.jsonl").write_text(json.dumps(facts | where | {"rate": rate}))
    return folder


# ------------------------------------------------------------------------------- the real child


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Lines of the whole doctor with the seconds at which they came, and its exit code."""
    environ = os.environ | {"DATA_DIR": str(tmp_path_factory.mktemp("root"))}
    command = [sys.executable, "-P", "-m", "harness.cli", "doctor"]
    began, lines = time.monotonic(), []
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip("\n"), process.poll()))
    return lines, process.returncode


@pytest.mark.skipif(bool(hardware.detect().gpus), reason="tells what a machine without GPUs says")
def test_cpu_box_says_what_it_can(whole):
    lines, code = whole
    said = {line[9:30].strip(): line for _, line, _ in lines if not line.startswith("    →")}
    assert code == 0
    for name in ("disk read", "disk write", "torch as imported", "triton as imported", "matmul"):
        assert said[name].startswith("ok"), said[name]
    assert float(said["matmul"][32:].split()[0]) > 0
    assert "GFLOP/s (512^3 fp32, median of 30)" in said["matmul"]
    assert "GB/s (64 MiB, read and written, median of 30)" in said["copy"]
    assert int(said["threads in torch"][32:]) >= 1


def test_quick_lines_come_before_the_child_ends(whole):
    lines, _ = whole
    at = {line[9:30].strip(): (seconds, code) for seconds, line, code in lines}
    first, (last, _) = lines[0], list(at.values())[-1]
    # torch alone takes a second and more to import
    assert first[2] is None
    assert at["variance"][0] < at["torch as imported"][0] < last
    assert last - at["variance"][0] > at["variance"][0] - first[0]


def test_checks_come_one_by_one_while_the_child_waits(tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    code = (
        "import json, pathlib, time\n"
        'print(json.dumps({"name": "torch", "value": "2.13.0"}), flush=True)\n'
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
        'print(json.dumps({"name": "threads", "value": "2"}))\n'
    )
    monkeypatch.setattr(probe, "COMMAND", child(code))
    monkeypatch.setattr(disk, "FILE_BYTES", 1 << 20)
    root = DataRoot(path=tmp_path, reason="test")
    checks = doctor.examine(hardware.detect(), root)
    names = [next(checks).name]
    assert names == ["python"]
    while names[-1] != "torch as imported":
        names.append(next(checks).name)
    assert "n speedrun" in names  # and the child still waits
    gate.touch()
    assert [check.name for check in checks] == ["threads in torch"]


# --------------------------------------------------------------------------- children gone wrong


@pytest.mark.parametrize(
    ("code", "value", "fix"),
    [
        ("raise RuntimeError('no luck')", "ended with exit code 1", "RuntimeError: no luck"),
        ("import os; os.abort()", "ended with SIGABRT", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGALRM)", "ended with SIGALRM", ""),
        ("pass", "it ended without a word", ""),
        ("print('Hello')", "its output is not understood", "It said: Hello"),
        ("print('{}')", "its output is not understood", "It said: {}"),
        ("print('[1]')", "its output is not understood", "[1]"),
        ("print('{\"name\": \"x\", \"rate\": NaN}')", "its output is not understood", "NaN"),
        ("print('{\"name\": \"x\", \"rate\": 0}')", "its output is not understood", "rate"),
        ("print('{\"name\": \"x\", \"rate\": true}')", "its output is not understood", "true"),
        ("print('{\"name\": \"x\"}')", "its output is not understood", "name"),
        ("print('[' * 100000)", "its output is not understood", "[[["),
        ("import os; os.write(1, b'\\xff\\x1b[2J\\n')", "its output is not understood", "?[2J"),
        ("while True: print('x' * 9999999)", "its output is not understood", "xxx"),
    ],
)  # fmt: skip
def test_child_that_fails_is_a_problem_with_its_last_words(code, value, fix):
    (check,) = examined(code)
    assert (check.name, check.verdict) == ("probe", "problem")
    assert value in check.value
    assert fix in check.fix
    assert "python -P -m nmoe.probe" in check.fix
    assert (check.value + check.fix).isprintable()
    assert len(check.fix) < 800


def test_what_a_child_said_before_it_crashed_stands():
    code = 'import os; print(\'{"name": "threads", "value": "2"}\', flush=True); os.abort()'
    first, last = examined(code)
    assert (first.name, first.verdict) == ("threads in torch", "ok")
    assert (last.name, last.verdict) == ("probe", "problem")


@pytest.mark.parametrize("closes", [False, True])
def test_child_that_hangs_is_ended_with_its_children(closes, tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, sys, time\n"
        "os.fork()\n"
        f"with open({str(pids)!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')\n"
        "sys.stderr.write('still here\\n'); sys.stderr.flush()\n"
        f"if {closes}: os.close(1)\n"
        "time.sleep(600)\n"
    )
    began = time.monotonic()
    (check,) = examined(code, deadline_s=2.0)
    assert time.monotonic() - began < 20
    assert "was not done in 2 s" in check.value
    assert "still here" in check.fix
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    # A killed grandchild is gone soon, not at once: nobody here can wait for it.
    end_at = time.monotonic() + 5
    while any(map(is_alive, started)) and time.monotonic() < end_at:
        time.sleep(0.01)
    assert [pid for pid in started if is_alive(pid)] == []


def test_child_ends_when_nobody_wants_more(tmp_path):
    pid = tmp_path / "pid"
    code = (
        f"import os, time, pathlib\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        'print(\'{"name": "threads", "value": "2"}\', flush=True)\ntime.sleep(600)\n'
    )
    checks = probe.examine(machine("none"), command=child(code))
    assert next(checks).value == "2"
    checks.close()
    assert not is_alive(int(pid.read_text()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
NAMES = st.sampled_from(["matmul", "copy", "peer", "CUDA", "GPUs", "torch", "threads"])
LINES = st.fixed_dictionaries(
    {"name": NAMES | SCALARS},
    optional={
        "value": st.text() | SCALARS,
        "error": st.text() | SCALARS,
        "rate": st.floats() | SCALARS,
        "unit": st.just("TFLOP/s") | SCALARS,
        "what": st.text() | SCALARS,
        "gpu": st.integers() | SCALARS,
        "to": st.integers() | SCALARS,
        "is_direct": st.booleans() | SCALARS,
    },
)


@settings(max_examples=300, deadline=None)
@given(LINES)
def test_whatever_a_line_says_its_check_is_one_short_printable_line(line):
    parsed = probe.parse(json.dumps(line))
    if parsed is not None:
        check = probe.judge(parsed, H200, {})
        assert check.name
        assert check.value
        assert (check.name + check.value + check.expected + check.fix).isprintable()
        assert len(check.name + check.value) < 400


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_no_text_of_a_child_is_an_error(text):
    assert probe.parse(text) is None or text.lstrip().startswith("{")


# ------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("rate", "verdict"), [(800.0, "ok"), (720.0, "ok"), (719.0, "note")])
def test_rate_is_judged_by_what_such_gpus_did(rate, verdict, tmp_path):
    line = {"name": "matmul", "gpu": 1, "rate": rate, "unit": "TFLOP/s", "what": "8192^3 bf16"}
    command = child(f"print({json.dumps(line)!r})")
    results = kept(tmp_path, "matmul", 800.0)
    (check,) = probe.examine(machine("h200x2"), command=command, results=results)
    assert (check.name, check.verdict) == ("matmul 1", verdict)
    assert check.expected == ">= 720 TFLOP/s: 90 % of a H200 of 2026-11-01 in bench/results"
    assert "% of the data sheet)" in check.value
    assert bool(check.fix) == (verdict == "note")


def test_rate_without_a_row_is_told_and_not_judged():
    check = judged(name="copy", gpu=0, rate=1.0, unit="GB/s", what="4096 MiB")
    assert (check.verdict, check.value, check.expected) == ("ok", "1.0 GB/s (4096 MiB)", "")


def test_copy_through_the_host_is_a_problem():
    line = {"name": "peer", "gpu": 0, "to": 1, "rate": 9.9, "unit": "GB/s", "what": "256 MiB"}
    check = judged(**line, is_direct=False)
    assert (check.name, check.verdict) == ("peer 0>1", "problem")
    assert check.value.endswith("through the host")
    assert judged(**line, is_direct=True).verdict == "ok"


def test_measurement_that_failed_is_a_problem_with_its_reason():
    check = judged(name="peer", gpu=0, to=1, error="8 of 9 words arrived changed", unit="GB/s")
    assert (check.name, check.verdict) == ("peer 0>1", "problem")
    assert check.value == "failed: 8 of 9 words arrived changed"
    assert "nvidia-smi topo -m" in check.fix


def test_gpus_are_named_as_nvidia_smi_does():
    line = probe.parse('{"name": "peer", "gpu": 0, "to": 1, "rate": 9, "unit": "GB/s"}')
    check = probe.judge(line, machine("h100x8", CUDA_VISIBLE_DEVICES="5,2"), {})
    assert check.name == "peer 5>2"


@pytest.mark.parametrize(
    ("on", "name", "value", "verdict"),
    [
        ("h200x2", "torch", "2.11.0+cu130", "ok"),
        ("h200x2", "torch", "2.10.0", "problem"),
        ("h200x2", "triton", "3.6.0", "ok"),
        ("h200x2", "CUDA", "13.2", "ok"),  # of the driver's major version
        ("h100x8", "CUDA", "13.0", "problem"),  # the driver does 12.8
        ("not_available", "CUDA", "13.0", "ok"),
        ("h200x2", "GPUs", "2", "ok"),
        ("h200x2", "GPUs", "0", "problem"),
        ("rtx5090", "GPUs", "0", "note"),
        ("none", "GPUs", "0", "ok"),
        ("h200x2", "NCCL", "2.28.9", "ok"),
    ],
)
def test_what_torch_says_is_judged(on, name, value, verdict):
    check = judged(on=on, name=name, value=value)
    assert (check.value, check.verdict) == (value, verdict)
    assert bool(check.fix) == (verdict != "ok")
