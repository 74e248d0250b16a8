"""What there is to say to a request: the machine, the plan for it, problems, what to expect.

Made in a thread: it needs much of the harness, which the first paint does not wait for.
"""

from dataclasses import dataclass
from pathlib import Path

from harness import hardware, plan, preflight
from harness.errors import Problem
from harness.hardware import Detection
from harness.outlook import Outlook, outlook, time_words
from nmoe.config import Plan
from nmoe.paths import DataRoot
from tui.feed import Failure, attempt
from tui.screens.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the machine is, the plan for it unless it is refused, and what is wrong."""

    detection: Detection | None = None
    plan: Plan | None = None
    problems: tuple[Problem, ...] = ()
    outlook: Outlook | None = None

    @property
    def time(self) -> str:
        """What it may be expected to take, in words."""
        return time_words(self.outlook) if self.outlook else ""

    @property
    def is_ready(self) -> bool:
        return self.plan is not None and not any(p.is_blocking for p in self.problems)


def make_offer(
    request: Request,
    root: DataRoot,
    detection: Detection | None = None,
    *,
    repo_board: Path,
    bench_results: Path,
) -> Offer:
    """Detect unless that was done, resolve the plan, look for problems; never raises."""
    if detection is None:
        seen = attempt(lambda: hardware.detect(fake=request.fake_hardware))
        if isinstance(seen, Failure):
            return Offer(problems=(Problem(what=seen.problem, fix=seen.fix),))
        detection = seen.value
    found = detection
    resolved = attempt(
        lambda: plan.resolve(
            preset=request.preset,
            detection=found,
            root=root,
            dtype=request.dtype,
            gpus=request.gpus,
            steps=request.steps,
            seed=request.seed,
            data=request.data,
            overrides=request.overrides,
        )
    )
    if isinstance(resolved, Failure):
        refusal = Problem(what=resolved.problem, fix=resolved.fix)
        return Offer(detection=found, problems=(refusal,))
    chosen = resolved.value
    checked = attempt(lambda: preflight.problems(chosen, found, root))
    if isinstance(checked, Failure):
        return Offer(
            detection=found,
            plan=chosen,
            problems=(Problem(what=checked.problem, fix=checked.fix),),
        )
    expected = attempt(lambda: outlook(chosen, root, repo_board=repo_board, results=bench_results))
    return Offer(
        detection=found,
        plan=chosen,
        problems=checked.value,
        outlook=None if isinstance(expected, Failure) else expected.value,
    )
