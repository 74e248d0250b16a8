"""The shapes that everything is measured at, and the work that each of them is credited with.

Legend: T tokens, D model, F expert hidden, E experts, K top-k.
"""

from dataclasses import dataclass
from typing import Literal

from nmoe.config import Activation

ACTIVATION: Activation = "swiglu"
PRODUCTS = 6  # 2 FLOPs a multiply-add, three matrices: W1, W3, W2

Part = Literal["forward", "backward", "forward + backward"]
_TIMES: dict[Part, int] = {"forward": 1, "backward": 2, "forward + backward": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One layer on one rank; `zipf` is the exponent of the experts' popularity, 0 for uniform."""

    name: str
    tokens: int
    dim: int
    hidden: int
    num_experts: int
    top_k: int
    zipf: float = 0.0

    @property
    def choices(self) -> int:
        """Rows without padding."""
        return self.tokens * self.top_k

    def flops(self, part: Part) -> int:
        """6 T K D F forward, twice that backward; padding and recomputation earn nothing."""
        return _TIMES[part] * PRODUCTS * self.choices * self.dim * self.hidden


SUPER = {"dim": 768, "hidden": 384}
SHAPES = (
    Shape(name="s1", tokens=65_536, num_experts=256, top_k=7, **SUPER),
    # the rows of one of eight ranks: 458,752 over its 32 experts
    Shape(name="s2", tokens=65_536, num_experts=32, top_k=7, **SUPER),
    Shape(name="s2-zipf", tokens=65_536, num_experts=32, top_k=7, zipf=1.0, **SUPER),
    Shape(name="s4", tokens=40_960, dim=768, hidden=256, num_experts=128, top_k=8),
    Shape(name="s5", tokens=32_768, dim=2048, hidden=768, num_experts=128, top_k=8),
    Shape(name="ultra", tokens=65_536, num_experts=4096, top_k=7, **SUPER),
)
TINY = (
    Shape(name="tiny", tokens=96, dim=64, hidden=64, num_experts=8, top_k=2),
    Shape(name="tiny-zipf", tokens=96, dim=64, hidden=64, num_experts=16, top_k=3, zipf=1.5),
)


def shapes_for(device: str, names: str = "") -> tuple[Shape, ...]:
    """What is measured on "cuda" and on "cpu", where only the reference runs.

    names: only these, with commas in between; ValueError for one that is not measured there.
    """
    shapes = SHAPES if device == "cuda" else TINY
    wanted = set(filter(None, names.split(",")))
    known = [shape.name for shape in shapes]
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"shapes: got {', '.join(unknown)}, expected some of {', '.join(known)}.")
    return tuple(shape for shape in shapes if not wanted or shape.name in wanted)
