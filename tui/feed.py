"""What threads hand to the screens: views of a run, and the values of work or why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from textual.message import Message

from harness.errors import HarnessError

if TYPE_CHECKING:  # read by the thread that follows a run
    from harness.runs import RunState, RunStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a replay is, in seconds of the recording; `marks_s` are where attempts began."""

    elapsed_s: float
    duration_s: float
    speed: float
    is_playing: bool
    marks_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as of `now`: what its events add up to, and whether a process holds its lock.

    Of a replay `now` is the time of the recording, in which the run is alive until its end.
    """

    state: "RunState"
    status: "RunStatus"
    is_alive: bool
    now: float
    position: Position | None = None


class RunChanged(Message):
    """The newest view of the run; an older one still waiting is dropped."""

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self.view = view

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, RunChanged)


class FeedFailed(Message):
    """The run cannot be read at the moment; an empty problem says that it can again."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why some work gave no value."""

    problem: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Success(Generic[T]):
    """The value of some work."""

    value: T


def attempt(work: Callable[[], T]) -> Success[T] | Failure:
    """The worker edge: the value of `work`, or what kept it from giving one."""
    try:
        return Success(value=work())
    except HarnessError as error:
        return Failure(problem=error.problem, fix=error.fix)
    except Exception as error:  # noqa: BLE001 - a thread must not take the screen down
        return Failure(problem=str(error) or type(error).__name__)
