"""Every kernel compiled for sm_90a and sm_100a: no spills, tensor cores, wide rows."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import REPO_ROOT
from tests.kernels.offline import TENSOR_CORES, Report

pytestmark = pytest.mark.compile

KERNELS = REPO_ROOT / "nmoe" / "kernels"
CASES = "tests.kernels.compile_cases"

# A launcher and the kernels it needs, each with what the gate is there to find.
PLANTED = """
import json
import sys
from dataclasses import asdict

import torch
import triton
import triton.language as tl

from tests.kernels.offline import compile_cases


@triton.jit
def _spills(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at)
    tl.store(out + at, a - tl.sum(a))


@triton.jit
def _small_dot(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at)
    tl.store(out + at, tl.dot(a, a).to(tl.bfloat16))


@triton.jit
def _every_other_column(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + 2 * at, tl.load(x + 2 * at))


@triton.jit
def _flag_without_barrier(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at))
    tl.atomic_xchg(out, 1.0, sem="release", scope="sys")


@triton.jit
def _sound(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.load(x + at))


def launch():
    x = torch.empty(2**16, dtype=torch.bfloat16, device="meta")
    _spills[(1,)](x.float(), x.float(), 128, num_warps=1)
    _small_dot[(1,)](x, x, 16, num_warps=1)
    _every_other_column[(1,)](x, x, 64)
    _flag_without_barrier[(1,)](x.float(), x.float(), 1024)
    _sound[(1,)](x, x, 64)


for report in compile_cases({"planted": launch}, target=int(sys.argv[1])):
    print(json.dumps(asdict(report)))
"""


def compile_in_children(*command: str) -> list[Report]:
    """Reports of both targets, from one child process each, side by side."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    children = [
        subprocess.Popen(
            [sys.executable, *command, str(target)],
            cwd=REPO_ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for target in TENSOR_CORES
    ]
    done = [(child, *child.communicate()) for child in children]
    for child, _, stderr in done:
        assert child.returncode == 0, stderr[-4000:]
    return [Report(**json.loads(line)) for _, stdout, _ in done for line in stdout.splitlines()]


def faults(reports: Sequence[Report], entries: set[str]) -> list[str]:
    """What is wrong with kernels, and which of them were not compiled for a target."""
    found = [fault for report in reports for fault in report.faults]
    for target in TENSOR_CORES:
        compiled = {report.kernel for report in reports if report.target == target}
        found += [
            f"{kernel}: no case of {CASES} compiles it for sm_{target}a"
            for kernel in sorted(entries - compiled)
        ]
    return found


def entry_kernels(folder: Path) -> set[str]:
    """module.function of every `@triton.jit` function that the host launches.

    Those that other kernels call, and nobody launches with a grid, are parts of kernels.
    """
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}
    kernels = {
        (module, node.name): node
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if any(is_jit(decorator) for decorator in node.decorator_list)
    }
    called = {
        name
        for (_, function), node in kernels.items()
        for name in called_names(node)
        if name != function
    }
    launched = {name for tree in trees.values() for name in launched_names(tree)}
    return {
        f"{module}.{name}" for module, name in kernels if name in launched or name not in called
    }


def is_jit(decorator: ast.expr) -> bool:
    """`@triton.jit`, `@jit`, with arguments or without."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function).rpartition(".")[2] == "jit"


def called_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2]


def launched_names(tree: ast.AST) -> Iterator[str]:
    """Names in `kernel[grid](…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            yield ast.unparse(node.func.value).rpartition(".")[2]


def test_kernels_compile_for_both_targets_without_faults() -> None:
    entries = entry_kernels(KERNELS)
    assert {"sort._place", "experts._up", "combine._combine"} <= entries
    assert not {"experts._starts", "experts._store_up"} & entries
    assert faults(compile_in_children("-m", CASES), entries) == []


def test_gate_finds_each_fault_when_it_is_planted(
    tmp_path: Path,
) -> None:
    program = tmp_path / "planted.py"
    program.write_text(PLANTED)
    reports = compile_in_children(str(program))
    found = {
        (report.kernel.partition(".")[2], report.target): " ".join(report.faults)
        for report in reports
    }
    for target, tensor_core in TENSOR_CORES.items():
        assert "bytes of stack" in found["_spills", target]
        assert f"without {tensor_core}" in found["_small_dot", target]
        assert "rows are read, and not 16 bytes wide" in found["_every_other_column", target]
        assert "rows are written, and not 16 bytes wide" in found["_every_other_column", target]
        assert "narrow accesses" in found["_every_other_column", target]
        assert "a release with no barrier" in found["_flag_without_barrier", target]
        assert found["_sound", target] == ""


def test_gate_finds_a_kernel_without_a_case_when_it_is_planted(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        "@triton.jit\n"
        "def _part(x): return _part(x) + 1\n"
        "@triton.jit(do_not_specialize=['n'])\n"
        "def _entry(x, n): tl.store(x, _part(n) + _shared(n))\n"
        "@triton.jit\n"
        "def _shared(x): return x\n"
        "@triton.jit\n"
        "def _chosen(x): return x\n"
        "def launch(x): _entry[(1,)](x, 1); _shared[(1,)](x); (lambda f: f[(1,)](x))(_chosen)\n"
    )
    entries = entry_kernels(tmp_path)
    assert entries == {"planted._entry", "planted._shared", "planted._chosen"}
    assert len(faults([], entries)) == 2 * len(entries)
