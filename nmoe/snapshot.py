"""A state copied to host memory, so that training may change it while the copy is written."""

from collections.abc import Mapping
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Copies of a state; the page-locked memory for what is on a GPU is kept and used again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The same nest of dicts and lists, every tensor a copy on the host.

        Complete when this returns; the next call writes over what came from a GPU.
        """
        copy = self._copy(state, ())
        if self._buffers:
            torch.cuda.synchronize()
        return copy

    def close(self) -> None:
        """Unlock the memory; what `take` returned must not be in use any more."""
        for buffer in self._buffers.values():
            if buffer.numel():
                _cudart().cudaHostUnregister(buffer.data_ptr())
        self._buffers.clear()

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        match value:
            case Tensor() if value.is_cuda:
                return self._buffer(value, place).copy_(value.detach(), non_blocking=True)
            case Tensor():
                return value.detach().clone()
            case Mapping():
                return {key: self._copy(item, (*place, key)) for key, item in value.items()}
            case list() | tuple():
                return [self._copy(item, (*place, index)) for index, item in enumerate(value)]
            case _:
                return value

    def _buffer(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        key = (*place, tensor.shape, tensor.dtype)
        if key not in self._buffers:
            self._buffers[key] = _page_locked(tensor)
        return self._buffers[key]


def _page_locked(tensor: Tensor) -> Tensor:
    """Host memory that a GPU copies `tensor` to while the host goes on, to the byte.

    torch's own pinned memory comes in powers of two: up to twice as much. Raises RuntimeError.
    """
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = mmap(-1, tensor.nbytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    buffer = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
    code = int(_cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if code:
        raise RuntimeError(
            f"host memory for a checkpoint cannot be locked: got CUDA error {code} for"
            f" {buffer.nbytes} bytes. Free host memory and resume the run."
        )
    return buffer


def _cudart() -> Any:
    """torch's way to the CUDA runtime, which it does not declare the type of."""
    return torch.cuda.cudart()
