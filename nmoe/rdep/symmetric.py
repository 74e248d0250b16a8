"""Memory of GPUs that every rank of the host can write: torch's symmetric memory (CUDA IPC).

The only module that touches that interface, which torch calls unstable. NVLink multicast is never
used.
"""

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from nmoe.rdep.peers import PeerError, Region

_ALIGN = 256


class SymmetricMemory:
    """Named regions in one zeroed buffer a rank; see `nmoe.rdep.device.Memory`.

    All ranks open it together, with the same regions, in an initialised default process group.
    """

    def __init__(
        self, *, rank: int, world: int, regions: dict[str, Region], device: torch.device
    ) -> None:
        self.rank, self.world = rank, world
        offsets: dict[str, int] = {}
        size = 0
        for name, region in regions.items():
            offsets[name] = size
            size += -(-region.num_bytes // _ALIGN) * _ALIGN
        try:
            self._buffer = symmetric_memory.empty(size, dtype=torch.uint8, device=device)
            handle = symmetric_memory.rendezvous(
                self._buffer, dist.distributed_c10d._get_default_group()
            )
        except (RuntimeError, AttributeError) as error:
            raise PeerError(
                f"rank {rank} cannot share {size} bytes of {device} with its peers: {error}. "
                "Check that the GPUs see each other (nvidia-smi topo -m) and that they have room."
            ) from error
        self._buffer.zero_()
        torch.cuda.synchronize(device)
        dist.barrier()
        self._local = {
            name: self._buffer[offsets[name] : offsets[name] + region.num_bytes]
            .view(region.dtype)
            .view(region.shape)
            for name, region in regions.items()
        }
        self._pointers = {
            name: torch.tensor(
                [pointer + offset for pointer in handle.buffer_ptrs],
                dtype=torch.int64,
                device=device,
            )
            for name, offset in offsets.items()
        }

    def local(self, name: str) -> Tensor:
        return self._local[name]

    def pointers(self, name: str) -> Tensor:
        return self._pointers[name]

    def close(self) -> None:
        """Nothing: the memory goes when the last tensor of it does."""
