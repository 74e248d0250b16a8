"""A curve that grows while it is drawn: many states share its columns, each sees its own length."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Point(NamedTuple):
    """One point of a series."""

    step: int
    tokens: int
    train_s: float
    value: float
    wall_s: float = 0.0


class Buffer:
    """Columns of points that only grow at their end; shared by many series."""

    __slots__ = ("step", "tokens", "train_s", "value", "wall_s")

    def __init__(self) -> None:
        self.step = array("q")
        self.tokens = array("q")
        self.train_s = array("d")
        self.value = array("d")
        self.wall_s = array("d")

    def part(self, start: int, stop: int) -> "Buffer":
        """The points from `start` up to `stop` in columns of their own."""
        other = Buffer()
        other.step = self.step[start:stop]
        other.tokens = self.tokens[start:stop]
        other.train_s = self.train_s[start:stop]
        other.value = self.value[start:stop]
        other.wall_s = self.wall_s[start:stop]
        return other


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The first `length` points of a shared buffer; never changes, whatever is appended later."""

    buffer: Buffer = field(default_factory=Buffer)
    length: int = 0

    def append(self, point: Point) -> "Series":
        """A series one longer; copies only when another series has grown the buffer meanwhile."""
        buffer = self.buffer
        if len(buffer.value) != self.length:
            buffer = buffer.part(0, self.length)
        buffer.step.append(point.step)
        buffer.tokens.append(point.tokens)
        buffer.train_s.append(point.train_s)
        buffer.wall_s.append(point.wall_s)
        buffer.value.append(point.value)
        return Series(buffer, self.length + 1)

    def until(self, step: int) -> "Series":
        """The points up to and including `step`."""
        length = self.length
        while length and self.buffer.step[length - 1] > step:
            length -= 1
        return self if length == self.length else Series(self.buffer, length)

    @property
    def steps(self) -> "array[int]":
        """A copy of the steps, int64."""
        return self.buffer.step[: self.length]

    @property
    def tokens(self) -> "array[int]":
        """A copy of the tokens seen, int64."""
        return self.buffer.tokens[: self.length]

    @property
    def train_s(self) -> "array[float]":
        """A copy of the training seconds, float64."""
        return self.buffer.train_s[: self.length]

    @property
    def values(self) -> "array[float]":
        """A copy of the values, float64."""
        return self.buffer.value[: self.length]

    @property
    def wall_s(self) -> "array[float]":
        """A copy of the seconds since the start, float64; 0 where they were not measured."""
        return self.buffer.wall_s[: self.length]

    def since(self, start: int) -> Buffer:
        """A copy of the points from index `start` on."""
        return self.buffer.part(start, self.length)

    @property
    def last(self) -> Point | None:
        """The newest point."""
        return self[-1] if self.length else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Point:
        at = index + self.length if index < 0 else index
        if not 0 <= at < self.length:
            raise IndexError(f"point {index} of {self.length}")
        columns = self.buffer
        return Point(
            columns.step[at],
            columns.tokens[at],
            columns.train_s[at],
            columns.value[at],
            columns.wall_s[at],
        )

    def __iter__(self) -> Iterator[Point]:
        return (self[index] for index in range(self.length))

    def __eq__(self, other: object) -> bool:
        """Equal bit by bit, so that a NaN equals itself."""
        if not isinstance(other, Series):
            return NotImplemented
        return self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash((self.length, self.last))

    def _bytes(self) -> tuple[bytes, ...]:
        columns = (self.steps, self.tokens, self.train_s, self.values, self.wall_s)
        return tuple(column.tobytes() for column in columns)
