"""The probe: a pattern that any device makes alike, rates, and nothing but JSON on stdout."""

import json
import subprocess
import sys

import pytest
import torch

from nmoe import probe

NOISY = """
import sys
from nmoe import probe
probe.measurements = lambda: iter([{"name": "matmul", **probe._tried(lambda: 1 / len(sys.argv))}])
def facts():
    print("a library says hello")
    yield {"name": "torch", "value": "1"}
probe.facts = facts
sys.exit(probe.main())
"""


@pytest.mark.parametrize("at", [0, 1000, 1023])
def test_content_that_changed_on_its_way_is_found(at):
    arrived = probe._pattern(8192, "cpu", salt=3)
    probe.check_content(arrived, salt=3)
    arrived.view(torch.uint8)[8 * at] ^= 1
    with pytest.raises(RuntimeError, match="1 of 1024 words arrived changed"):
        probe.check_content(arrived, salt=3)


def test_content_of_another_pair_is_not_taken_for_ones_own():
    with pytest.raises(RuntimeError, match="1024 of 1024"):
        probe.check_content(probe._pattern(8192, "cpu", salt=1), salt=2)
    with pytest.raises(RuntimeError, match="of 1024"):
        probe.check_content(torch.zeros(1024, dtype=torch.int64), salt=1)


def test_copy_that_loses_words_is_an_error(monkeypatch):
    assert probe.peer_gbps("cpu", "cpu", num_bytes=1 << 16, timings=2) > 0
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, _: self)
    with pytest.raises(RuntimeError, match="words arrived changed"):
        probe.peer_gbps("cpu", "cpu", num_bytes=1 << 16, timings=2)


def test_rate_is_of_the_work_and_its_median(monkeypatch):
    times = [5.0, 1.0, 9.0]
    monkeypatch.setattr(probe.Stopwatch, "repeat", lambda *_, **__: times)
    assert probe.matmul_tflops("cpu") == pytest.approx(2 * 512**3 / 5.0 / 1e6)
    assert probe.copy_gbps("cpu") == pytest.approx(2 * 64 * 2**20 / 5.0 / 1e3)


def test_failure_of_torch_is_a_line_and_not_an_end():
    def out_of_memory() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmany words")

    assert probe._tried(out_of_memory) == {"error": "CUDA out of memory."}


def test_nothing_but_json_is_on_stdout():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["torch", "matmul"]
    assert "a library says hello" in done.stderr


@pytest.mark.gpu
def test_every_gpu_and_pair_is_measured():
    lines = list(probe.measurements())
    count = torch.cuda.device_count()
    names = [line["name"] for line in lines]
    assert [line for line in lines if "error" in line] == []
    assert all(line["rate"] > 0 for line in lines)
    assert names.count("matmul") == names.count("copy") == count
    assert names.count("peer") == count * (count - 1)
