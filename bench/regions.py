"""Regions of the profiler around the parts of a live run, put there from outside.

The trainer's code has no annotations: modules get hooks, and a few functions that are no modules
are wrapped for as long as the regions last.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn
from torch.profiler import record_function

from bench.parts import ATTENTION, OPTIMIZER, REGION, ROTARY
from nmoe.build import Run

_IN_ATTENTION = {
    "qkv": "projections",
    "out": "projections",
    "q_norm": ROTARY,
    "k_norm": ROTARY,
    "rotary": ROTARY,
}
_IN_MIXTURE = {"router": "router", "experts": "experts", "shared": "shared expert"}
_OUTSIDE = {"": "embedding", "embedding": "embedding", "norm": "norms", "head": "head"}
_CARRIED = {
    "dispatch": "dispatch",
    "dispatch_grads": "dispatch",
    "combine": "combine",
    "combine_grads": "combine",
}


def part_of(module: str, *, is_mixture: bool) -> str | None:
    """The part that a module belongs to by its name; None for one inside of what is no part.

    is_mixture: whether the feed-forward of its block is a mixture of experts. The sum of a block's
    branches counts as norm, that of experts and shared expert as combine.
    """
    words = module.split(".")
    if words[0] != "blocks":
        return _OUTSIDE.get(module)
    match words[2:]:
        case [] | ["attention_norm" | "ffn_norm", *_]:
            return "norms"
        case ["attention"]:
            return ATTENTION
        case ["attention", name, *_]:
            return _IN_ATTENTION.get(name)
        case ["ffn"] if is_mixture:
            return "combine"
        case ["ffn", name, *_] if is_mixture:
            return _IN_MIXTURE.get(name)
        case ["ffn", *_]:
            return "dense FFN"
    return None


@contextmanager
def regions(run: Run) -> Iterator[None]:
    """Everything that the run does lies in the region of its part."""
    model = run.model
    mixtures = {f"blocks.{index}" for index, _ in model.moe_layers()}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            block = ".".join(name.split(".")[:2])
            part = part_of(name, is_mixture=block in mixtures)
            if part is not None:
                _hook(stack, module, REGION + part)
        _wrap(stack, model, "nats", "head")
        for name, part in _CARRIED.items():
            _wrap(stack, run.transport, name, part)
        for name in ("reduce_gradients", "step", "update"):
            _wrap(stack, run.optimizer, name, OPTIMIZER)
        for _, layer in model.moe_layers():
            _wrap(stack, layer.router, "update_bias", "router")
        yield


def _hook(stack: ExitStack, module: nn.Module, region: str) -> None:
    entered: list[Any] = []

    def enter(*_: Any) -> None:
        entered.append(record_function(region))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def _wrap(stack: ExitStack, owner: object, name: str, part: str) -> None:
    """The owner's method inside a region, until the stack unwinds."""
    method: Callable[..., Any] = getattr(owner, name)

    @wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(REGION + part):
            return method(*args, **kwargs)

    setattr(owner, name, inside)
    stack.callback(delattr, owner, name)
