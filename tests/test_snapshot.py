"""Copies of a state: everything in it, and nothing that changes afterwards."""

import pytest
import torch

from nmoe.snapshot import Snapshot


def make_state(device: str) -> dict[str, object]:
    return {
        "model": {"w": torch.arange(6.0, device=device).view(2, 3), "none": torch.empty(0)},
        "optimizer": [{"step": torch.tensor(3.0, device=device), "mask": torch.tensor([True])}],
        "columns": torch.arange(6.0, device=device).view(2, 3).t(),
        "cursor": [1, 2],
    }


def tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for item in state.values() for tensor in tensors(item)]
    if isinstance(state, list):
        return [tensor for item in state for tensor in tensors(item)]
    return [state] if isinstance(state, torch.Tensor) else []


def check_copies(device: str) -> None:
    snapshot, state, expected = Snapshot(), make_state(device), make_state("cpu")
    first = snapshot.take(state)
    for tensor in tensors(state):
        tensor.zero_()
    assert first["cursor"] == [1, 2]
    for copy, value in zip(tensors(first), tensors(expected), strict=True):
        assert torch.equal(copy, value)
        assert copy.untyped_storage().nbytes() == copy.nbytes  # a file holds that and no more
    second = snapshot.take(state)
    assert all(not tensor.any() for tensor in tensors(second))
    snapshot.close()


def test_snapshot_keeps_the_values_of_its_moment() -> None:
    check_copies("cpu")


@pytest.mark.gpu
def test_snapshot_of_a_gpu_uses_its_locked_memory_again() -> None:
    check_copies("cuda")
    snapshot, state = Snapshot(), make_state("cuda")
    first, second = tensors(snapshot.take(state)), tensors(snapshot.take(state))
    for tensor, copy, again in zip(tensors(state), first, second, strict=True):
        assert copy.is_pinned() == tensor.is_cuda
        assert (copy.data_ptr() == again.data_ptr() != 0) == tensor.is_cuda
    snapshot.close()
