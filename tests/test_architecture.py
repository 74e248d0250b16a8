"""The walls: floors, owners and budgets, each shown to bite."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPO_ROOT

PACKAGES = ("nmoe", "harness", "tui")
BIN = Path(sys.executable).parent

# What may be imported or used only by its owners; a folder ends with "/".
MODULE_OWNERS = {
    "pynvml": ("harness/hardware.py",),
    "sqlite3": ("harness/experiments.py",),
    "duckdb": ("harness/history.py",),
    "textual": ("tui/",),
    "textual_serve": ("tui/web.py",),
    "aiohttp": ("tui/web.py",),
    "triton": ("nmoe/kernels/",),
    "torch.distributed": ("nmoe/dist.py", "nmoe/rdep/peers.py", "nmoe/rdep/symmetric.py"),
    # paths.py asks git, nothing else.
    "subprocess": ("harness/launch.py", "nmoe/paths.py"),
    "multiprocessing": (),
    "datasets": ("nmoe/data/sources.py",),
    "huggingface_hub": (),
    "tokenizers": ("nmoe/data/json_tokenizer.py",),
    "urllib.request": ("nmoe/data/download.py",),
    "http.client": ("nmoe/data/download.py",),
    # launch.py asks the kernel for a free port.
    "socket": ("harness/launch.py",),
}
NAME_OWNERS = {
    "os.environ": (
        "nmoe/paths.py",
        "nmoe/dist.py",
        "nmoe/data/hub.py",
        "harness/hardware.py",
        "harness/launch.py",
        "harness/terminal.py",
        "tui/app.py",
    ),
    "os.getenv": (),
    "os.putenv": (),
    "os.system": (),
    "os.popen": (),
    "time.perf_counter": (
        "nmoe/metrics.py",
        # Durations that are reported beside the score: building, saving, one CORE task.
        "nmoe/build.py",
        "nmoe/eval/core.py",
        # What a machine does at most.
        "nmoe/probe.py",
    ),
    "print": ("harness/terminal.py", "nmoe/train.py", "nmoe/evaluate.py", "nmoe/data/cli.py"),
}
DEFERRED_IMPORTS = (
    "nmoe/ops.py",
    "nmoe/data/sources.py",
    "nmoe/data/files.py",
    "harness/verbs/",
    "harness/cli.py",
    "tui/__main__.py",
    "tui/catalog.py",
    "tui/remote.py",
)
CLOCK_OWNER = "nmoe/metrics.py"

MAX_FUNCTION, MAX_KERNEL_FUNCTION = 60, 120
MAX_MODULE, MAX_KERNEL_MODULE = 400, 600
# The edges of the command and of the screen, and a library that raises nothing narrower.
MAX_BROAD_EXCEPTS = 3

INVENTED_VARIABLES = {"DATA_DIR"}
# Variables that others invented.
FOREIGN_VARIABLES = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("NNODES", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *(
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "PYTHONHASHSEED",
    ),
    *(
        "TERM",
        "COLORTERM",
        "NO_COLOR",
        "COLUMNS",
        "LINES",
        "SSH_CONNECTION",
        "SSH_TTY",
        "LANG",
        "CI",
        "HF_ENDPOINT",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One module: its path from the repository root, its lines, its tree."""

    path: str
    num_lines: int
    tree: ast.Module

    @property
    def is_kernel(self) -> bool:
        return self.path.startswith("nmoe/kernels/")


def parse(path: str, text: str) -> Source:
    return Source(path=path, num_lines=len(text.splitlines()), tree=ast.parse(text, path))


@cache
def sources() -> tuple[Source, ...]:
    files = (file for package in PACKAGES for file in sorted((REPO_ROOT / package).rglob("*.py")))
    return tuple(parse(str(file.relative_to(REPO_ROOT)), file.read_text()) for file in files)


def is_owner(path: str, owners: tuple[str, ...]) -> bool:
    return any(path.startswith(each) if each.endswith("/") else path == each for each in owners)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def names_used(source: Source) -> Iterator[tuple[str, int]]:
    """Every name, attribute chain and import of a module, with its line."""
    for node in ast.walk(source.tree):
        for name in imported(node) or [dotted(node)]:
            if name:
                yield name, getattr(node, "lineno", 0)


def strangers(source: Source, owners_of: dict[str, tuple[str, ...]]) -> list[str]:
    """Uses of something by a module that does not own it."""
    return sorted(
        {
            f"{source.path}:{line} uses {owned}"
            for name, line in names_used(source)
            for owned, owners in owners_of.items()
            if (name == owned or name.startswith(f"{owned}.")) and not is_owner(source.path, owners)
        }
    )


def long_functions(source: Source) -> list[str]:
    limit = MAX_KERNEL_FUNCTION if source.is_kernel else MAX_FUNCTION
    return [
        f"{source.path}:{node.lineno} {node.name} has {length} lines, at most {limit}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > limit
    ]


def broad_excepts(source: Source) -> list[str]:
    broad = {"Exception", "BaseException"}
    return [
        f"{source.path}:{node.lineno}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or broad & {dotted(each) for each in ast.walk(node.type)})
    ]


def deferred_imports(source: Source) -> list[str]:
    functions = (
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        f"{source.path}:{node.lineno}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not is_owner(source.path, DEFERRED_IMPORTS)
    ]


def environment_variables(source: Source) -> set[str]:
    """Constant names looked up in a mapping called environ or env."""
    found: set[str] = set()
    for node in ast.walk(source.tree):
        key = None
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            key = node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"get", "pop", "setdefault"}
            and is_environment(node.func.value)
            and node.args
        ):
            key = node.args[0]
        elif isinstance(node, ast.Compare) and any(
            is_environment(each) for each in node.comparators
        ):
            key = node.left
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
    return found


def is_environment(node: ast.AST) -> bool:
    return dotted(node).split(".")[-1] in {"environ", "env"}


def guessed_fields(source: Source) -> list[str]:
    """`getattr(plan, "x", default)`: a field read under a default of the reader's own."""
    return [
        f"{source.path}:{node.lineno}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and dotted(node.func) == "getattr"
        and dotted(node.args[0]).split(".")[-1] in {"config", "cfg", "plan"}
        and (len(node.args) == 3 or isinstance(node.args[1], ast.Constant))
    ]


def clock_writers(source: Source) -> list[str]:
    """Assignments to an attribute `train_s`, the score."""
    return [
        f"{source.path}:{node.lineno}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr == "train_s"
        if isinstance(node.ctx, ast.Store)
        and source.path.startswith("nmoe/")
        and source.path != CLOCK_OWNER
    ]


def all_of(check, *args) -> list[str]:
    return [found for source in sources() for found in check(source, *args)]


def test_sources_are_found():
    assert {each.path.split("/")[0] for each in sources()} == set(PACKAGES)


def test_modules_have_one_owner_for_what_they_own():
    assert all_of(strangers, MODULE_OWNERS) == []


def test_names_have_one_owner_for_what_they_own():
    assert all_of(strangers, NAME_OWNERS) == []


def test_git_is_asked_only_by_paths():
    asked = [
        f"{source.path}:{node.lineno}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and node.value == "git" and source.path != "nmoe/paths.py"
    ]
    assert asked == []


def test_score_clock_is_written_only_by_metrics():
    assert all_of(clock_writers) == []


def test_functions_stay_within_their_budget():
    assert all_of(long_functions) == []


def test_modules_stay_within_their_budget():
    over = [
        f"{source.path} has {source.num_lines} lines, at most {limit}"
        for source in sources()
        if source.num_lines > (limit := MAX_KERNEL_MODULE if source.is_kernel else MAX_MODULE)
    ]
    assert over == []


def test_broad_excepts_stay_within_their_budget():
    assert len(found := all_of(broad_excepts)) <= MAX_BROAD_EXCEPTS, found


def test_imports_are_deferred_only_where_allowed():
    assert all_of(deferred_imports) == []


def test_environment_variables_invented_are_data_dir_alone():
    used = set().union(*(environment_variables(source) for source in sources()))
    assert used - FOREIGN_VARIABLES == INVENTED_VARIABLES


def test_config_fields_are_never_guessed():
    assert all_of(guessed_fields) == []


@pytest.mark.parametrize(
    ("check", "args", "path", "text"),
    [
        (strangers, (MODULE_OWNERS,), "harness/runs.py", "import pynvml"),
        (strangers, (MODULE_OWNERS,), "nmoe/moe.py", "from torch import distributed"),
        (strangers, (MODULE_OWNERS,), "nmoe/moe.py", "import torch\ntorch.distributed.barrier()"),
        (strangers, (MODULE_OWNERS,), "nmoe/ops.py", "def f():\n    import triton.language"),
        (strangers, (NAME_OWNERS,), "nmoe/model.py", "import os\nx = os.environ['HOME']"),
        (strangers, (NAME_OWNERS,), "nmoe/model.py", "from os import environ"),
        (strangers, (NAME_OWNERS,), "nmoe/model.py", "print(1)"),
        (strangers, (NAME_OWNERS,), "nmoe/train.py", "import time\ntime.perf_counter()"),
        (long_functions, (), "nmoe/moe.py", "def f():\n" + "    x = 1\n" * 60),
        (broad_excepts, (), "nmoe/moe.py", "try:\n    f()\nexcept (OSError, Exception):\n    g()"),
        (broad_excepts, (), "nmoe/moe.py", "try:\n    f()\nexcept:\n    g()"),
        (deferred_imports, (), "nmoe/moe.py", "def f():\n    import json"),
        (environment_variables, (), "nmoe/dist.py", "env.get('NMOE_FAST')"),
        (environment_variables, (), "nmoe/dist.py", "'NMOE_FAST' in os.environ"),
        (guessed_fields, (), "nmoe/moe.py", "getattr(self.config, 'top_k', 2)"),
        (clock_writers, (), "nmoe/train.py", "clock.train_s += 1"),
    ],
)
def test_check_finds_the_breach_when_there_is_one(check, args, path, text):
    assert check(parse(path, text), *args)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lint-imports", "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_import_contracts_are_kept():
    done = lint_imports(REPO_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("harness/format.py", "import torch", "never reach torch"),
        ("tui/feed.py", "import tui.widgets.chart", "the floors of tui"),
        ("harness/format.py", "import tui.feed", "imports point down"),
        ("harness/runs.py", "import nmoe.model", "torch-free surface"),
        ("harness/runs.py", "import nmoe.data.loader", "torch-free surface"),
        ("harness/runs.py", "import harness.plan", "the floors of harness"),
        ("nmoe/config.py", "import typer", "knows nothing of what is around it"),
        ("nmoe/flops.py", "import torch", "torch-free modules"),
        ("nmoe/moe.py", "import nmoe.kernels", "only nmoe.ops imports kernels"),
        ("nmoe/reference/route.py", "import nmoe.kernels", "the floors of nmoe"),
        ("nmoe/validate.py", "import nmoe.metrics", "the floors of nmoe"),
        ("nmoe/attention/other.py", "import nmoe.attention.sdpa", "attention variants"),
        ("tui/widgets/chart.py", "import harness.runs", "widgets take numbers"),
        ("nmoe/rdep/layout.py", "import nmoe.rdep.ipc", "no import cycles"),
        ("nmoe/homeless.py", "", "the floors of nmoe"),
        ("harness/homeless.py", "", "the floors of harness"),
        ("harness/errors.py", "import bench", "nothing imports bench"),
    ],
)
def test_import_contract_breaks_when_a_wall_is_crossed(path, line, contract, tmp_path):
    for package in PACKAGES:
        shutil.copytree(
            REPO_ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "bench").mkdir()
    shutil.copy(REPO_ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    broken = done.stdout.partition("Broken contracts")[2]
    assert done.returncode == 1
    assert contract in broken, done.stdout


@pytest.mark.parametrize("command", [("format", "--check"), ("check",)])
def test_ruff_finds_nothing(command):
    done = subprocess.run(
        [BIN / "ruff", *command, "."], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
