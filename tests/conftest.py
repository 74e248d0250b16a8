"""What every test gets: one thread, its own data root, a world without torchrun; marks that skip.

No test writes the data root of the person who runs it or the tracked scoreboard.
"""

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported. Two busy processes with two threads each take four times as long as
# with one thread each, and the order of a sum must not depend on the cores of the machine.
os.environ["OMP_NUM_THREADS"] = "1"
# Children of tests find the packages from any working directory.
os.environ["PYTHONPATH"] = str(REPO_ROOT)
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

import pytest

TRACKED_BOARD = REPO_ROOT / "LEADERBOARD.json"
GPU_MARKS = ("gpu", "multigpu", "sm90", "sm100")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="run tests that reach the internet")


@cache
def capabilities() -> tuple[tuple[int, int], ...]:
    """Compute capability of every GPU that programs here may use."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ()

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(tuple(pynvml.nvmlDeviceGetCudaComputeCapability(each)) for each in handles)
    except pynvml.NVMLError:
        return ()


# Read when kernels are defined: without a GPU they are interpreted, here and in children.
if not capabilities():
    os.environ["TRITON_INTERPRET"] = "1"


def missing(mark: str) -> str | None:
    """Why a test with this mark cannot run here, or None."""
    gpus = capabilities()
    if mark == "gpu" and not gpus:
        return "needs an NVIDIA GPU, this machine has none"
    if mark == "multigpu" and len(gpus) < 2:
        return f"needs two NVIDIA GPUs, this machine has {len(gpus)}"
    if mark == "sm90" and (9, 0) not in gpus:
        return "needs a GPU of compute capability 9.0, this machine has none"
    if mark == "sm100" and (10, 0) not in gpus:
        return "needs a GPU of compute capability 10.0, this machine has none"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reasons = [missing(mark) for mark in GPU_MARKS if item.get_closest_marker(mark)]
        if item.get_closest_marker("network") and not config.getoption("--network"):
            reasons.append("reaches the internet: run with --network")
        if item.get_closest_marker("compile") and importlib.util.find_spec("triton") is None:
            reasons.append("compiles Triton kernels, and triton is not installed")
        for reason in filter(None, reasons):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root of the test's own, named by DATA_DIR."""
    folder = tmp_path_factory.mktemp("data_dir")
    monkeypatch.setenv("DATA_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _untouched_board() -> Iterator[None]:
    before = TRACKED_BOARD.read_bytes() if TRACKED_BOARD.exists() else None
    yield
    after = TRACKED_BOARD.read_bytes() if TRACKED_BOARD.exists() else None
    assert after == before, "this test wrote the tracked LEADERBOARD.json"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real text, vocabulary and bundle: $NMOE_TEST_DATA, else ../shared/data."""
    folder = Path(os.environ.get("NMOE_TEST_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data: NMOE_TEST_DATA is unset and there is no {folder}")
    return folder
