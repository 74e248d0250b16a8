"""What a fresh interpreter loads: harness and screen never torch, `n --help` hardly anything."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPO_ROOT

HEAVY = ("torch", "triton", "datasets", "pandas", "transformers", "safetensors")
# Loaded by a verb that needs it, never by `n --help`.
DEFERRED = (*HEAVY, "textual", "duckdb", "pyarrow", "numpy", "pynvml", "sqlite3", "yaml")
NVML = ("pynvml",)

BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Blocked())
"""


def modules(package: str) -> list[str]:
    files = sorted((REPO_ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(REPO_ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, away from the checkout's folder."""
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)


def loaded_by(imports: list[str], banned: tuple[str, ...]) -> set[str]:
    """Which of `banned` are in sys.modules after `imports`."""
    done = fresh(
        f"import sys, {', '.join(imports)}\nprint(*(set({banned!r}) & sys.modules.keys()))"
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["harness", "tui"])
def test_package_loads_no_torch_when_every_module_is_imported(package):
    assert loaded_by(modules(package), HEAVY) == set()


def test_first_screen_waits_for_neither_numbers_nor_tables_nor_runs():
    tables = ("numpy", "pyarrow", "duckdb", "sqlite3", "yaml", "tui.screens.summary")
    heavy = (*HEAVY, *tables, "nmoe.config", "nmoe.events", "harness.runs")
    assert loaded_by(["tui.__main__"], heavy) == set()


@pytest.mark.parametrize(
    "module", ["nmoe.config", "nmoe.paths", "nmoe.events", "nmoe.flops", "nmoe.data.manifest"]
)
def test_shared_module_loads_no_torch(module):
    assert loaded_by([module], HEAVY) == set()


def test_cli_loads_only_what_help_needs():
    assert loaded_by(["harness.cli"], DEFERRED) == set()


def test_help_works_when_torch_cannot_be_imported():
    done = fresh(
        f"{BLOCK}\nimport runpy\nsys.argv = ['n', '--help']\n"
        "runpy.run_module('harness.cli', run_name='__main__', alter_sys=True)"
    )
    assert done.returncode == 0, done.stderr
    assert "speedrun" in done.stdout


def test_block_refuses_torch():
    assert "torch is not installed" in fresh(f"{BLOCK}\nimport torch").stderr


@pytest.mark.parametrize(
    ("verb", "needed"),
    [("runs", ()), ("leaderboard", ()), ("speedrun --leaderboard", ()), ("doctor --quick", NVML)],
)
def test_quick_verbs_load_only_what_they_need(verb, needed, tmp_path):
    """What they take is measured by bench/verbs.py; what would make them slow is not loaded."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "harness.cli", *verb.split()]
    env = os.environ | {"DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "harness" in loaded
    assert loaded & {*DEFERRED, "pydantic"} == set(needed)
