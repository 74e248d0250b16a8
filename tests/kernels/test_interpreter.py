"""The interpreter's bf16 and fp8 against torch, and that nothing else makes them right."""

import json
import os
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels import interpreter

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="kernels run on the GPU here, not interpreted"
)
SIZE = 64


@triton.jit
def _arithmetic(a, b, total, product, ratio, less, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(total + at, x + y)
    tl.store(product + at, x * y)
    tl.store(ratio + at, (x / y).to(tl.bfloat16))
    tl.store(less + at, x < y)


@triton.jit
def _cast(source, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


@triton.jit
def _dot(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.dot(tl.load(a + at), tl.load(b + at), tl.zeros((SIZE, SIZE), tl.float32))
    tl.store(out + at, total.to(out.dtype.element_ty))


@triton.jit
def _sum(a, out, SIZE: tl.constexpr):
    tl.store(out, tl.sum(tl.load(a + tl.arange(0, SIZE)), 0))


def numbers(*shape: int, seed: int) -> Tensor:
    """Normal fp32 numbers of both signs over some powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** torch.randint(-3, 4, shape, generator=generator)
    return torch.randn(*shape, generator=generator) * size


def run_cast(source: Tensor, dtype: torch.dtype) -> Tensor:
    target = torch.zeros(source.shape, dtype=dtype)
    _cast[(1,)](source, target, source.numel())
    return target


def faults() -> list[str]:
    """Operations on bf16 and fp8 whose results differ from torch's."""
    a, b = numbers(SIZE, seed=1).bfloat16(), numbers(SIZE, seed=2).bfloat16()
    total, product, ratio = (torch.zeros(SIZE, dtype=torch.bfloat16) for _ in range(3))
    less = torch.zeros(SIZE, dtype=torch.bool)
    _arithmetic[(1,)](a, b, total, product, ratio, less, SIZE)
    right = {
        "add": torch.equal(total, a + b),
        "multiply": torch.equal(product, a * b),
        "divide": torch.equal(ratio, a / b),
        "compare": torch.equal(less, a < b),
    }
    wide = torch.cat([numbers(4096 - 4, seed=3), torch.tensor([0.0, -0.0, 1e-9, torch.inf])])
    whole = torch.arange(-128, 128, dtype=torch.int32)
    for name, dtype in (("bf16", torch.bfloat16), ("e4m3", torch.float8_e4m3fn)):
        right[f"fp32 to {name}"] = torch.equal(
            run_cast(wide, dtype).float(), wide.to(dtype).float()
        )
    right["int to bf16"] = torch.equal(run_cast(whole, torch.bfloat16), whole.bfloat16())
    right["bf16 to int"] = torch.equal(run_cast(a, torch.int32), a.int())
    p, q = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(4)).bfloat16()
    out = torch.zeros(SIZE, SIZE)
    _dot[(1,)](p, q, out, SIZE)
    exact = p.double() @ q.double()
    right["dot"] = bool((out - exact).norm() < 1e-6 * exact.norm())  # fp32 sums of 64
    return [name for name, is_right in right.items() if not is_right]


def test_interpreter_computes_bf16_and_fp8_as_torch_does() -> None:
    assert faults() == []


def test_interpreter_computes_bf16_wrongly_when_it_is_not_repaired() -> None:
    program = f"import json; from {__name__} import faults; print(json.dumps(faults()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"dot", "add", "fp32 to bf16"} <= set(json.loads(done.stdout))


def test_interpreter_refuses_bf16_reductions_when_it_cannot_do_them_right() -> None:
    a = numbers(SIZE, seed=5).bfloat16()
    with pytest.raises(Exception, match="bf16 operands, expected fp32"):
        _sum[(1,)](a, torch.zeros(1, dtype=torch.bfloat16), SIZE)


def test_interpreter_is_repaired_once_when_install_runs_again() -> None:
    interpreter.install()
    assert faults() == []
