"""Kernels run on the GPU where there is one, else through the repaired interpreter."""

import pytest
import torch
import triton

from tests.kernels import interpreter

if triton.knobs.runtime.interpret:
    interpreter.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU, or the CPU when they are interpreted."""
    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
