"""Sets of repeats: registered before the first run starts, judged by all of them afterwards.

`$DATA_DIR/repeats/SERIES.json` names every run with its seed and the horizon, and is never changed:
a run that failed, or never came, counts against its set.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness import leaderboard, rules, score, significance
from harness.entry import Entry, Replicates, Status
from harness.errors import MachineError, RunError, UsageError
from harness.leaderboard import CERTIFIED_RUNS, REPLICATED_RUNS
from harness.score import Score
from harness.significance import Sigma
from nmoe.config import ConfigError, Plan, build, with_train
from nmoe.paths import RUN_ID, DataRoot, new_run_id, write_atomic

FORMAT = 1
MAX_RUNS = 100
# How a run ends that went to its horizon.
FINISHED = ("done", "missed", "core-failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run of a set before it starts."""

    run_id: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A registration."""

    format: int
    series: str
    created: str
    preset: str
    config_sha: str
    horizon: int
    runs: tuple[Planned, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a registered run; `scored` is None when it left nothing to score."""

    run_id: str
    seed: int
    status: str
    scored: Score | None

    @property
    def is_finished(self) -> bool:
        """Whether it went to its horizon and was validated there."""
        found = self.scored
        return found is not None and self.status in FINISHED and found.result.loss is not None


def make_plans(plan: Plan, *, times: int, seed: int | None) -> tuple[Series, list[Plan]]:
    """A set of `times` runs of a plan up to its last step, each with a seed of its own.

    Seeds are drawn by the system, or count up from `seed`. Raises UsageError.
    """
    if not 1 <= times <= MAX_RUNS:
        raise UsageError(f"--repeat: got {times}, expected 1 to {MAX_RUNS}")
    series = new_run_id(f"{plan.preset}-x{times}")
    seeds = _seeds(times) if seed is None else [seed + i for i in range(times)]
    plans: list[Plan] = []
    for each in seeds:
        run_id = _new_id(plan, [made.run_id for made in plans])
        target = replace(plan.target, stop_rule="fixed_horizon")
        made = replace(plan, run_id=run_id, series=series, target=target)
        made = with_train(made, seed=each)
        assert isinstance(made, Plan)
        plans.append(made)
    return Series(
        format=FORMAT,
        series=series,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        preset=plan.preset,
        config_sha=plan.digests.config,
        horizon=plan.train.steps,
        runs=tuple(Planned(run_id=each.run_id, seed=each.train.seed) for each in plans),
    ), plans


def register(series: Series, root: DataRoot) -> Path:
    """Write the registration down for good; MachineError when that is impossible."""
    path = _path(series.series, root)
    try:
        if path.exists():
            raise RunError(f"{path} exists", "A set of repeats is registered once.")
        write_atomic(path, json.dumps(asdict(series), indent=1) + "\n")
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror}", "Free space or fix the permissions there."
        ) from None
    return path


def exists(name: str, root: DataRoot) -> bool:
    """Whether a set of that name is registered."""
    return bool(RUN_ID.fullmatch(name)) and _path(name, root).is_file()


def read(name: str, root: DataRoot) -> Series:
    """A registration; RunError when there is none or it cannot be read."""
    path = _path(name, root)
    try:
        series = build(Series, json.loads(path.read_bytes()), where=path.name)
    except FileNotFoundError:
        raise RunError(f"no set of repeats {name}", f"See {path.parent}.") from None
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    ids = {each.run_id for each in series.runs}
    if series.format != FORMAT or series.series != name or len(ids) != len(series.runs):
        raise RunError(f"{path} does not hold the set {name}")
    return series


def outcomes(series: Series, root: DataRoot) -> list[Outcome]:
    """What became of every registered run, in its order."""
    found: list[Outcome] = []
    for each in series.runs:
        folder = root.run(each.run_id)
        scored: Score | None = None
        try:
            if folder.plan.is_file():
                scored = score.compute(folder, root)
        except RunError:
            scored = None
        status = "never started" if scored is None else scored.result.status
        found.append(Outcome(run_id=each.run_id, seed=each.seed, status=status, scored=scored))
    return found


def replicates(series: Series, found: Sequence[Outcome], others: Sequence[Entry]) -> Replicates:
    """The statistics of a set; `others` are entries whose repeats tell of the same cohort's spread.

    UsageError when too few finished, when their seeds, code, data or recipes are not what was
    registered, or when they are copies of each other.
    """
    finished = [each for each in found if each.is_finished]
    scores = [each.scored for each in finished if each.scored is not None]
    if len(scores) < 2:
        raise UsageError(
            f"{len(scores)} of {len(found)} runs went to the horizon, expected at least 2"
        )
    problems = list(_unlike(series, finished))
    if problems:
        raise UsageError(f"the runs of {series.series} are no repeats: {'; '.join(problems)}")
    losses = [each.result.loss for each in scores if each.result.loss is not None]
    times = [each.result.train_s for each in scores]
    sigma = _sigma(scores[0], losses, others)
    tested = significance.test_below(losses, scores[0].result.target, sigma)
    failed = len(found) - len(finished)
    return Replicates(
        series=series.series,
        registered_utc=series.created,
        horizon=series.horizon,
        n=len(found),
        started=sum(each.scored is not None for each in found),
        finished=len(finished),
        failed=failed,
        run_ids=tuple(each.run_id for each in found),
        seeds=tuple(each.seed for each in found),
        statuses=tuple(each.status for each in found),
        losses=tuple(losses),
        times_s=tuple(times),
        mean_loss=tested.mean,
        sd_loss=significance.spread(losses),
        mean_train_s=significance.mean_time(times, failed=failed),
        sd_train_s=significance.spread(times),
        sigma=sigma.value,
        sigma_from=sigma.origin,
        sigma_df=sigma.df,
        z=tested.z,
        p=tested.p,
    )


def judge(entry: Entry, repeats: Replicates) -> tuple[Status, str]:
    """(status, why) of an entry with these repeats behind it."""
    told = f"{repeats.finished} of {repeats.n} runs, z {repeats.z:.2f}, p {repeats.p:.2g}"
    if entry.status not in leaderboard.VERIFIED:
        return entry.status, f"not verified; {told}"
    if repeats.mean_loss > entry.result.target:
        return "verified", f"the mean loss {repeats.mean_loss:.5f} is above the target; {told}"
    may_fail = 1 if repeats.n >= CERTIFIED_RUNS else 0
    if repeats.failed > may_fail:
        return "verified", f"{repeats.failed} runs did not come to the horizon; {told}"
    if repeats.finished + repeats.failed >= CERTIFIED_RUNS:
        return "certified", told
    if repeats.finished >= REPLICATED_RUNS:
        return "replicated", told
    return "verified", f"fewer than {REPLICATED_RUNS} repeats; {told}"


def _unlike(series: Series, finished: Sequence[Outcome]) -> Iterator[str]:
    """Where runs are not what was registered, or differ in more than their seeds."""
    first = finished[0].scored
    assert first is not None
    seen: set[int] = set()
    for each in finished:
        assert each.scored is not None
        result = each.scored.result
        if result.seed != each.seed:
            yield f"{each.run_id}: seed: got {result.seed}, registered {each.seed}"
        if result.seed in seen:
            yield f"{each.run_id}: seed {result.seed} comes twice"
        seen.add(result.seed)
        if each.scored.evidence.selection.series != series.series:
            yield f"{each.run_id}: it belongs to another set"
        if result.step != series.horizon:
            yield f"{each.run_id}: ended at step {result.step}, registered {series.horizon}"
        if result.digests.config != series.config_sha:
            yield f"{each.run_id}: its recipe is not the registered one"
        different = first.cohort.differences(each.scored.cohort)
        same = (result.digests.commit, result.digests.is_dirty, result.train_data)
        base = first.result
        if different or same != (base.digests.commit, base.digests.is_dirty, base.train_data):
            yield f"{each.run_id}: code, data or cohort differ from {finished[0].run_id}"


def _sigma(first: Score, losses: Sequence[float], others: Sequence[Entry]) -> Sigma:
    """The spread that the rules state for a task, else that of the cohort's own repeats."""
    task = rules.task(first.result.task)
    if task is not None and task.sigma is not None and not first.breaches:
        return Sigma(value=task.sigma, df=None, origin="the rules")
    groups = [(significance.spread(losses), len(losses))]
    for entry in others:
        repeats = entry.replicates
        if entry.cohort == first.cohort and repeats is not None:
            groups.append((repeats.sd_loss, repeats.finished))
    return significance.pooled(groups)


def _seeds(times: int) -> list[int]:
    drawn: dict[int, None] = {}
    while len(drawn) < times:
        drawn[secrets.randbelow(1 << 31)] = None
    return list(drawn)


def _new_id(plan: Plan, taken: Sequence[str]) -> str:
    stem = plan.run_id.rsplit("-", 3)[0]
    while (run_id := new_run_id(stem)) in taken:
        continue
    return run_id


def _path(name: str, root: DataRoot) -> Path:
    return root.repeats / f"{name}.json"
