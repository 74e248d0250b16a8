"""What a person asked to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmoe.config import Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for on the command line; None leaves it to the machine."""

    preset: str | None = None
    dtype: "Dtype | None" = None
    gpus: int | None = None
    steps: int | None = None
    seed: int | None = None
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    fake_hardware: Path | None = None
