"""What launchers refuse: tensors that their kernels would read wrongly."""

import torch
from torch import Tensor

ANY = None  # of a shape: whatever size

Check = tuple[str, Tensor, tuple[int | None, ...], torch.dtype | tuple[torch.dtype, ...]]


def check(launcher: str, device: torch.device, *checks: Check) -> None:
    """ValueError for a tensor of another shape, dtype or device, or that is not contiguous."""
    for name, tensor, shape, dtypes in checks:
        dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
        if (
            tensor.dtype in dtypes
            and tensor.ndim == len(shape)
            and all(want in (ANY, got) for got, want in zip(tensor.shape, shape, strict=True))
            and tensor.is_contiguous()
            and tensor.device == device
        ):
            continue
        types = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        sizes = ", ".join("any" if size is ANY else str(size) for size in shape)
        raise ValueError(
            f"{launcher}: got {name} {str(tensor.dtype).removeprefix('torch.')} "
            f"{list(tensor.shape)} of strides {list(tensor.stride())} on {tensor.device}, "
            f"expected contiguous {types} [{sizes}] on {device}."
        )


def check_widths(launcher: str, **widths: int) -> None:
    """ValueError for widths that are no multiple of 64."""
    for name, width in widths.items():
        if width % 64 or width == 0:
            raise ValueError(f"{launcher}: got {name} = {width}, expected a multiple of 64.")
