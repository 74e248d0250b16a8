"""The attention module on kernels: its error, which of torch's attentions run, lengths of any size.

Legend: B batch, S sequence, D model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nmoe.attention.sdpa import SdpaAttention
from nmoe.config import Impl, read_config
from tests import tiny
from tests.kernels.cases import assert_no_worse, poisoned

BF16 = torch.bfloat16
MAX_LENGTH = 2048


def make_attention(
    folder: Path, device: torch.device, *, impl: Impl, dim: int, heads: int
) -> SdpaAttention:
    config = read_config(tiny.write_config(folder))
    attention = SdpaAttention(
        replace(
            config,
            model=replace(config.model, dim=dim, num_heads=heads, impl=impl),
            train=replace(config.train, seq_len=MAX_LENGTH),
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            mean, scale = (1.0, 0.1) if parameter.ndim == 1 else (0.0, dim**-0.5)
            parameter.copy_(mean + scale * torch.randn(parameter.shape, generator=generator))
    return attention.to(device)


def run(
    attention: SdpaAttention, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """y, dx and the gradients of all weights."""
    generator = torch.Generator().manual_seed(1)
    x_BSD, dy_BSD = (torch.randn(shape, generator=generator).to(BF16) for _ in range(2))
    x_BSD = x_BSD.to(device, dtype).requires_grad_()
    y_BSD = attention(x_BSD)
    leaves = (x_BSD, *attention.parameters())
    return [y_BSD.detach(), *torch.autograd.grad(y_BSD, leaves, dy_BSD.to(device, dtype))]


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_attention_is_no_worse_than_plain_bf16_at_any_length(
    length: int, device: torch.device, tmp_path: Path
) -> None:
    shape, sizes = (2, length, 64), {"dim": 64, "heads": 2}
    impls: tuple[Impl, ...] = ("triton", "reference")
    ours, theirs = (make_attention(tmp_path, device, impl=each, **sizes) for each in impls)
    got, plain = (run(each, shape, device, BF16) for each in (ours, theirs))
    exact = run(theirs.double(), shape, device, torch.float64)
    for each in zip(got, plain, exact, strict=True):
        assert_no_worse(*each)


Allowed = dict[str, bool]


@contextmanager
def watched(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, Allowed]]]:
    """What torch may run, and the backend it tries first, of every attention in here."""
    seen: list[tuple[int, Allowed]] = []
    stock = F.scaled_dot_product_attention

    def attend(*args: Tensor, is_causal: bool) -> Tensor:
        seen.append((torch._C._get_sdp_priority_order()[0], allowed()))
        return stock(*args, is_causal=is_causal)

    with patch.context() as inner:
        inner.setattr(F, "scaled_dot_product_attention", attend)
        yield seen


def allowed() -> Allowed:
    cuda = torch.backends.cuda
    return {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


def test_backends_are_cudnn_then_flash_and_never_math(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = make_attention(tmp_path, device, impl="triton", dim=64, heads=2)
    shape, before = (1, 5, 64), allowed()
    backend = torch.nn.attention.SDPBackend
    flash_only = {"cudnn": False, "flash": True, "efficient": False, "math": False}
    with watched(monkeypatch) as seen:
        run(attention, shape, device, BF16)
        with poisoned():  # deterministic mode
            run(attention, shape, device, BF16)
        with torch.no_grad():
            attention(torch.ones(shape, dtype=BF16, device=device))
    assert seen == [
        (int(backend.CUDNN_ATTENTION), flash_only | {"cudnn": True}),
        (int(backend.FLASH_ATTENTION), flash_only),
        (int(backend.FLASH_ATTENTION), flash_only),
    ]
    assert allowed() == before


def test_reference_leaves_the_choice_to_torch(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = make_attention(tmp_path, device, impl="reference", dim=64, heads=2)
    with watched(monkeypatch) as seen:
        run(attention, (1, 5, 64), device, BF16)
    ((_, choices),) = seen
    assert choices == allowed()
    assert choices["math"]


def kernel_names(attention: SdpaAttention, length: int, device: torch.device) -> str:
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        run(attention, (4, length, 768), device, BF16)
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())


@pytest.mark.gpu
def test_cudnn_runs_in_training_and_flash_when_bits_must_repeat(
    device: torch.device, tmp_path: Path
) -> None:
    attention = make_attention(tmp_path, device, impl="triton", dim=768, heads=12)
    names = kernel_names(attention, 2048, device)
    assert "cudnn" in names
    assert "flash_bwd" not in names
    torch.use_deterministic_algorithms(True)  # with `warn_only` flash does not repeat its bits
    try:
        names = kernel_names(attention, 2048, device)
        first, second = (run(attention, (4, 2048, 768), device, BF16) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert "cudnn" not in names
    assert "flash_bwd" in names
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 2, 3, 7, 17, 100, 1023])
def test_attention_takes_every_length_on_the_gpu(
    length: int, device: torch.device, tmp_path: Path
) -> None:
    sizes = {"dim": 768, "heads": 12}
    impls: tuple[Impl, ...] = ("triton", "reference")
    ours, theirs = (make_attention(tmp_path, device, impl=each, **sizes) for each in impls)
    x_BSD = torch.randn(3, length, 768, device=device).bfloat16()
    with torch.no_grad():
        got, plain = ours(x_BSD), theirs(x_BSD)
        exact = theirs.double()(x_BSD.double())
    assert_no_worse(got, plain, exact)


@pytest.mark.gpu
def test_attention_that_only_math_could_do_is_refused_by_torch(
    device: torch.device, tmp_path: Path
) -> None:
    attention = make_attention(tmp_path, device, impl="triton", dim=64, heads=2)
    with pytest.raises(RuntimeError, match="No available kernel"):
        run(attention, (1, 5, 64), device, torch.float32)


@pytest.mark.gpu
def test_attention_never_makes_the_host_wait(device: torch.device, tmp_path: Path) -> None:
    attention = make_attention(tmp_path, device, impl="triton", dim=768, heads=12)
    run(attention, (4, 256, 768), device, BF16)
    x_BSD = torch.randn(4, 256, 768, device=device).bfloat16().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(x_BSD).backward(torch.ones_like(x_BSD))
    finally:
        torch.cuda.set_sync_debug_mode("default")
