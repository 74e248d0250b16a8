"""What can go wrong around a run: a problem, its fix and the exit code, as a small tree."""

from dataclasses import dataclass
from typing import ClassVar


class HarnessError(Exception):
    """A problem a person can act on: `problem` says what happened, `fix` what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}. {fix}" if fix else problem)
        self.problem = problem
        self.fix = fix


class UsageError(HarnessError):
    """Something that was asked for does not exist or contradicts itself."""

    exit_code = 2


class MachineError(HarnessError):
    """This machine cannot do what the plan wants: GPU, driver, disk, permissions."""

    exit_code = 3


class DataError(HarnessError):
    """The data set or the eval bundle is missing, partial or corrupt."""

    exit_code = 4


class RunError(HarnessError):
    """The run folder does not allow what was asked: alive, unreadable, nothing to resume."""

    exit_code = 5


class BoardError(HarnessError):
    """A scoreboard file that cannot be trusted and is left untouched."""

    exit_code = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something found before a run: what it is, its fix, and the exit code; 0 is only a warning."""

    what: str
    fix: str = ""
    exit_code: int = 3

    @property
    def is_blocking(self) -> bool:
        """Whether a run must not start."""
        return self.exit_code != 0

    def error(self) -> HarnessError:
        """The error of the same exit code."""
        kinds = {kind.exit_code: kind for kind in (UsageError, MachineError, DataError, RunError)}
        return kinds[self.exit_code](self.what, self.fix)
