"""Triton's interpreter made right for bf16 and fp8, so that kernels can be proved on a CPU.

The interpreter keeps bf16 and fp8 values as their bit patterns in unsigned integers. Left as it is,
it multiplies, adds and compares the patterns themselves, and its casts cut mantissas off instead of
rounding them. Here operands become fp32 before anything is computed, and results are rounded to
nearest even, as GPUs do. What is not repaired (reductions, fma and clamp of such values) raises.
Two things are made fast: calls of functions, which searched Triton's whole language for builtins
every time, and sorting, a network of some fifty reductions that numpy does in one step.

`test_interpreter.py` shows the faults; the day it finds none, this file can go.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

FLOATS = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
PATTERNS = {tl.bfloat16, tl.float8e4nv, tl.float8e5}  # numpy has no such types
STOCK = {
    name: getattr(InterpreterBuilder, name)
    for name in ("binary_op", "cast_impl", "create_fp_to_fp", "create_fma", "create_clampf")
}
STOCK_APPLY = interpreter.ReduceScanOpInterface.apply
searched: set[str] = set()  # modules whose builtins are replaced


def install() -> None:
    """Repair the interpreter of this process, also when it is repaired already."""
    for method in (create_dot, binary_op, cast_impl, create_fp_to_fp):
        setattr(InterpreterBuilder, method.__name__, method)
    for name in ("create_fma", "create_clampf"):
        setattr(InterpreterBuilder, name, refuse_patterns(STOCK[name]))
    interpreter.ReduceScanOpInterface.apply = apply
    interpreter.InterpretedFunction.__call__ = call


def create_dot(
    self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: Any
):
    product = np.matmul(values(a), values(b), dtype=d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


def binary_op(self: InterpreterBuilder, lhs: TensorHandle, rhs: TensorHandle, op: Callable):
    kind = lhs.dtype.scalar
    if kind not in PATTERNS:
        return STOCK["binary_op"](self, lhs, rhs, op)
    result = op(values(lhs), values(rhs))
    if result.dtype == np.bool_:
        return TensorHandle(result, tl.int1)
    return TensorHandle(convert(result, tl.float32, kind), kind)


def cast_impl(self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype):
    source, target = src.dtype.scalar, dst_type.scalar
    if source in FLOATS and target in FLOATS:
        return TensorHandle(convert(src.data, source, target), target)
    if source in PATTERNS:
        return STOCK["cast_impl"](self, TensorHandle(values(src), tl.float32), dst_type)
    if target in PATTERNS:
        whole = STOCK["cast_impl"](self, src, tl.float32)
        return TensorHandle(convert(whole.data, tl.float32, target), target)
    return STOCK["cast_impl"](self, src, dst_type)


def create_fp_to_fp(
    self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype, rounding_mode: Any
):
    if rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ:  # what the stock cast does
        return STOCK["create_fp_to_fp"](self, src, dst_type, rounding_mode)
    return cast_impl(self, src, dst_type)


def apply(self: interpreter.ReduceScanOpInterface, args: Any):
    for each in args if isinstance(args, tuple) else (args,):
        refuse(each.handle)
    return STOCK_APPLY(self, args)


def call(self: interpreter.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    if self.fn is tl.standard.sort_impl.fn:
        return sort(*args, **kwargs)
    module = self.fn.__globals__["__name__"]
    if module not in searched:
        interpreter._patch_lang(self.fn)
        searched.add(module)
    return self.rewrite()(*args, **kwargs)


def sort(x: tl.tensor, k: Any = None, dim: Any = None, descending: Any = None) -> tl.tensor:
    if k is not None or tl.core._unwrap_if_constexpr(descending):
        raise NotImplementedError("interpreter: got top-k or descending, expected a plain sort.")
    refuse(x.handle)
    axis = tl.core._unwrap_if_constexpr(dim)
    data = np.sort(x.handle.data, axis=-1 if axis is None else axis)
    return tl.tensor(TensorHandle(data, x.dtype), x.type)


def refuse_patterns(method: Callable) -> Callable:
    """The builder's method for operands that numpy can hold, and an error for others."""

    def checked(self: InterpreterBuilder, *args: Any):
        for each in args:
            if isinstance(each, TensorHandle):
                refuse(each)
        return method(self, *args)

    return checked


def refuse(handle: TensorHandle) -> None:
    if handle.dtype.scalar in PATTERNS:
        raise NotImplementedError(
            f"interpreter: got {handle.dtype.scalar} operands, expected fp32. Cast them first."
        )


def values(handle: TensorHandle) -> np.ndarray:
    """What numpy can compute with: fp32 for bit patterns and fp16, the data itself for others."""
    kind = handle.dtype.scalar
    if kind in PATTERNS or kind == tl.float16:
        return convert(handle.data, kind, tl.float32)
    return handle.data


def convert(data: np.ndarray, source: tl.dtype, target: tl.dtype) -> np.ndarray:
    """Floats of one type as another, to nearest even; bit patterns come and go as integers."""
    tensor = torch.from_numpy(np.array(data, order="C"))
    if source in PATTERNS:
        tensor = tensor.view(FLOATS[source])
    tensor = tensor.to(FLOATS[target])
    if target in PATTERNS:
        tensor = tensor.view(torch.uint16 if tensor.itemsize == 2 else torch.uint8)
    return tensor.numpy()
