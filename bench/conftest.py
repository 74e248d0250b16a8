"""Fixtures and options of the suite; rows are collected, then shown or written."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.machine import Ceilings, device_name, machine, measure_ceilings
from bench.report import Report
from bench.rows import Row, load, regressions, save, update_summary
from bench.shapes import shapes_for
from bench.table import show
from nmoe.paths import REPO_ROOT
from nmoe.probe import Stopwatch

SUMMARY = REPO_ROOT / "bench" / "results" / "summary.json"
ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--rows", type=Path, help="write the rows there, one JSON object a line")
    group.addoption("--compare-rows", type=Path, help="mark what is slower than in these rows")
    group.addoption("--summary", type=Path, default=SUMMARY, help="merge the rows of a GPU there")
    group.addoption("--commit", help="the commit of the code, where git does not know it")
    group.addoption("--shapes", default="", help="only these, by name, with commas in between")
    group.addoption("--gpus", type=int, default=2, help="ranks of the transport, a GPU each")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        chosen = shapes_for(device_name(), metafunc.config.getoption("--shapes"))
        metafunc.parametrize("shape", chosen, ids=lambda shape: shape.name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    rows = session.config.stash[ROWS]
    if (file := session.config.getoption("--rows")) is not None:
        save(file, rows)
    update_summary(session.config.getoption("--summary"), rows)


def pytest_terminal_summary(config: pytest.Config) -> None:
    rows, old = config.stash[ROWS], config.getoption("--compare-rows")
    # whoever asked for a file shows it
    if rows and config.getoption("--rows") is None:
        show(rows, regressions(load(old) if old else [], rows))


@pytest.fixture(scope="session")
def device() -> str:
    return device_name()


@pytest.fixture(scope="session")
def watch(device: str) -> Stopwatch:
    return Stopwatch(device)


@pytest.fixture(scope="session")
def ceilings(device: str) -> Ceilings:
    return measure_ceilings(device)


@pytest.fixture(scope="session")
def report(ceilings: Ceilings, pytestconfig: pytest.Config) -> Report:
    facts = machine(commit=pytestconfig.getoption("--commit"))
    made = Report(rows=pytestconfig.stash[ROWS], machine=facts, ceilings=ceilings)
    made.add_ceilings()
    return made


@pytest.fixture(autouse=True)
def _room_for_the_next(device: str) -> Iterator[None]:
    """What a shape held goes back before the next one measures."""
    yield
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
