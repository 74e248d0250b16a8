"""A run as one self-contained page: result, curves, CORE, clocks, routers, energy, verification.

A pure function of the account of a run, in whatever way it ended, or while it goes on.
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from harness import curves, export, page, rules, tables
from harness import format as fmt
from harness.export import Account
from harness.ledger import ledger
from harness.run_state import RunState
from harness.status import RunStatus
from nmoe.config import Plan

_MAX_ALERTS = 20
_ENDINGS: dict[RunStatus, tuple[str, str]] = {
    "done": ("target reached", "good"),
    "missed": ("target not reached", "warn"),
    "failed": ("failed", "bad"),
    "diverged": ("diverged", "bad"),
    "interrupted": ("interrupted", "warn"),
    "stalled": ("stalled: its trainer says nothing", "bad"),
    "idle": ("not started", "warn"),
}
_SECTIONS = (
    *("model", "attention", "experts", "data", "optim", "schedule", "train", "log"),
    *("validation", "checkpoint", "eval", "target"),
)


def html(account: Account) -> str:
    """The report as a page."""
    return page.page(
        f"{account.folder.run_id}: {_status(account)[0]}",
        _head(account),
        _result(account),
        _events(account),
        _curves(account),
        _core(account.state),
        _clocks(account),
        _routers(account.state),
        _energy(account),
        _environment(account),
        _verification(account),
        page.paragraph(f"Read from {account.folder.root} on {_utc(account.now)}.", "dim small"),
    )


def _status(account: Account) -> tuple[str, str]:
    """The status in words, and the class that colours it."""
    if account.reached and account.status == "failed":
        return "target reached, CORE failed", "warn"
    return _ENDINGS.get(account.status, (f"{account.status}, still running", ""))


def _head(account: Account) -> str:
    said, kind = _status(account)
    return (
        f"<h1>{page.words(account.folder.run_id)}</h1>"
        f"{page.paragraph(said, f'status {kind}'.strip())}"
    )


def _result(account: Account) -> str:
    state, plan = account.state, account.state.plan
    wall_s = state.outcome.wall_s if state.outcome else state.wall_s or None
    val, core = state.val, state.core
    rows: list[tuple[str, object]] = [
        ("target", _target(state)),
        (
            "validation loss",
            None if val is None else f"{_exact(val.loss)} at step {fmt.count(val.step)}",
        ),
        ("best so far", _best(state)),
        ("steps", _steps(account)),
        ("tokens", fmt.count(_tokens(account))),
        ("training (the score)", _seconds(account.train_s)),
        ("wall clock", _seconds(wall_s)),
        ("CORE", None if core is None else f"{fmt.core(core.score)}{fmt.interval(core.ci95)}"),
        ("place", _place(account)),
        ("preset", None if plan is None else plan.preset),
        ("machine", None if plan is None else tables.machine(plan)),
        ("dtype", None if plan is None else plan.dtype),
        ("seed", None if plan is None else plan.train.seed),
        ("attempts", state.attempt + 1),
        ("created", None if plan is None else plan.created),
        ("as of", _utc(account.now) if account.is_alive else None),
    ]
    return page.section("Result", page.facts(rows), _way_on(account))


def _target(state: RunState) -> str | None:
    if state.target is None:
        return None
    task = "" if state.plan is None else f"{state.plan.data.task} "
    return f"{task}validation loss <= {state.target:g} nats a token"


def _best(state: RunState) -> str | None:
    """The best validation where the last one is another, with its way to the target."""
    if state.best_val is None or state.val is None or state.best_val == state.val.loss:
        return None
    return _exact(state.best_val)


def _steps(account: Account) -> str:
    state = account.state
    at = state.val.step if account.reached and state.val else state.step
    most = "" if account.reached else f" of at most {fmt.count(state.steps)}"
    return f"{fmt.count(at)}{most}"


def _tokens(account: Account) -> int:
    state = account.state
    last = state.vals.last
    return last.tokens if account.reached and last is not None else state.tokens


def _place(account: Account) -> str:
    place = account.place
    if place is None:
        result = account.state.result
        reason = account.board_problem or (result.reason if result else "")
        return f"on no board: {reason}" if reason else "on no board"
    entry = place.entry
    rank = "in a set of repeats" if place.rank is None else f"{place.rank} of {place.count}"
    return f"{rank} among {entry.cohort.label} ({entry.status}, {place.board})"


def _way_on(account: Account) -> str:
    if account.status == "interrupted":
        return page.command("It can go on:", f"n resume {account.folder.run_id}")
    if account.is_alive:
        return page.command("It can be watched:", f"n attach {account.folder.run_id}")
    return ""


def _events(account: Account) -> str:
    """What went wrong, if anything did."""
    state = account.state
    parts: list[str] = []
    if state.outcome is not None and state.outcome.message:
        parts.append(page.paragraph(f"The trainer: {state.outcome.message}."))
    end = state.exit
    if end is not None and (end.rc or end.signal):
        where = "" if end.rank is None else f", rank {end.rank}"
        by = f" by {end.signal}" if end.signal else ""
        hint = f": {end.hint}" if end.hint else ""
        parts.append(page.paragraph(f"It ended{by} with exit code {end.rc}{where}{hint}."))
        parts.append(page.lines(end.tail) if end.tail else "")
    resumed = [mark.step for mark in state.marks if mark.kind == "resume"]
    if resumed:
        parts.append(page.paragraph(f"Resumed after step {', '.join(map(fmt.count, resumed))}."))
    if state.bad_lines:
        parts.append(page.paragraph(f"{state.bad_lines} line(s) of its files cannot be read."))
    alerts = [f"{alert.level}: {alert.message}" for alert in state.alerts[-_MAX_ALERTS:]]
    parts.append(page.items(alerts) if alerts else "")
    return page.section("What happened", *parts) if any(parts) else ""


def _curves(account: Account) -> str:
    state = account.state
    if not state.losses.length and not state.val_events:
        return page.section("Curves", page.paragraph("No step was logged.", "dim"))
    charts = curves.speed_charts(state, export.power(account))
    return page.section(
        "Curves",
        page.figure(curves.loss_chart(state)),
        *(page.figure(chart, has_legend=False) for chart in charts if not chart.is_empty),
    )


def _core(state: RunState) -> str:
    tasks, score = state.core_tasks, state.core
    is_interim = not tasks and bool(state.interim_tasks)
    if is_interim:
        tasks, score = state.interim_tasks, state.interim_core
    if not tasks:
        return page.section("CORE", page.paragraph("Not scored.", "dim"))
    head = ("task", "items", "accuracy", "95 %", "chance", "centered", "cropped", "empty", "s")
    body = [
        (
            task.name,
            fmt.count(task.items),
            fmt.fixed(task.acc, decimals=4),
            "–" if task.ci95 is None else fmt.interval(task.ci95).strip(),
            fmt.fixed(task.baseline, decimals=3),
            fmt.core(task.centered),
            fmt.count(task.cropped),
            fmt.count(task.empty_regions),
            fmt.fixed(task.seconds, decimals=1),
        )
        for task in tasks
    ]
    notes = [f"{len(tasks)} of {tasks[0].count} tasks"]
    notes += (
        [f"interim, after step {fmt.count(tasks[0].step)}"] if is_interim and tasks[0].step else []
    )
    foot = None
    if score is not None:
        low_high = fmt.interval(score.ci95).strip() or "–"
        foot = ("CORE", fmt.count(score.items), "", low_high, "", fmt.core(score.score), "", "", "")
        if score.without_boolq is not None:
            notes.append(f"{fmt.core(score.without_boolq)} without boolq (no part of CORE)")
        notes.append(f"bundle {score.bundle}")
    return page.section(
        "CORE",
        page.table(head, body, right=" rrrrrrrr", foot=foot),
        page.paragraph("; ".join(notes), "dim small"),
    )


_COUNTED = {
    "validation": "the fixed validation text, interim CORE",
    "compiling": "building and warming up: model, optimizer, first passes",
    "checkpoints": "copy of the state to host memory",
    "other": "what no clock above counts",
}


def _clocks(account: Account) -> str:
    """Every second of the run by the clock that counted it; the rows add up to the wall clock."""
    state, clock = account.state, rules.current().clock
    parts = [part for part in ledger(state) if part.name != "CORE"]
    counted = {**_COUNTED, "training": ", ".join(clock.included)}
    rows = [(part.name, _ms(part.seconds), counted[part.name]) for part in parts]
    wall_s = state.outcome.wall_s if state.outcome else state.wall_s
    total = ("wall clock", _ms(wall_s), "since the trainer began to build")
    notes = [f"The clock is {clock.name}. It leaves out: {', '.join(clock.excluded)}."]
    if state.core is not None:
        notes.append(f"CORE took {fmt.exact_seconds(state.core.seconds)} behind both clocks.")
    stopped = None if account.train_s is None else _ms(account.train_s)
    if account.reached and stopped is not None and stopped not in [row[1] for row in rows[:1]]:
        notes.append(f"The passing validation stopped the score at {stopped} s.")
    return page.section(
        "Clocks",
        page.table(("clock", "s", "what it counts"), rows, right=" r ", foot=total),
        page.paragraph(" ".join(notes), "dim small"),
    )


def _routers(state: RunState) -> str:
    router, plan = state.router, state.plan
    if router is None:
        return ""
    experts = None if plan is None else plan.experts.num_experts
    of = "" if experts is None else f" of {experts}"
    columns = (router.layers, router.cv, router.entropy, router.experts_active)
    rows = [
        (layer, *(fmt.fixed(x, decimals=3) for x in (cv, entropy)), f"{active}{of}")
        + tuple(fmt.fixed(x, decimals=3) for x in (max_load, bias))
        for layer, cv, entropy, active, max_load, bias in zip(
            *columns, router.max_load, router.bias_range, strict=False
        )
    ]
    return page.section(
        "Routers",
        page.table(
            ("layer", "load CV", "entropy", "active experts", "max load", "bias range"),
            rows,
            right=" rrrrr",
        ),
        page.paragraph(
            f"After step {fmt.count(router.step)}. Loads over an even share; entropy 1 is even.",
            "dim small",
        ),
    )


def _energy(account: Account) -> str:
    evidence, tokens = account.evidence, _tokens(account)
    joules = None if evidence is None else evidence.energy_j
    alone = account.state.joules_per_token
    until = "to the target" if account.reached else "until its clock stopped"
    rows: list[tuple[str, object]] = [("a token, training alone", alone and _joules(alone))]
    if joules is not None:
        kwh = fmt.fixed(joules / 3.6e6, decimals=3, unit="kWh")
        rows.append((f"joules {until}", f"{fmt.count(joules)} J ({kwh})"))
        rows.append((f"a token, {until}", _joules(joules / tokens) if tokens else None))
    telemetry = None if evidence is None else evidence.telemetry
    if telemetry is not None:
        watts, heat = telemetry.power_mean_w, telemetry.temperature_max_c
        rows += [
            ("mean power of a GPU", watts and fmt.fixed(watts, unit="W")),
            ("highest temperature", heat and fmt.fixed(heat, unit="°C")),
        ]
    told = page.facts(rows)
    note = "Of the GPUs alone; CPU, memory and cooling are not in it."
    if not told:
        return page.section("Energy", page.paragraph("Not measured: no GPU told it.", "dim"))
    return page.section("Energy", told, page.paragraph(note, "dim small"))


def _environment(account: Account) -> str:
    plan, evidence = account.state.plan, account.evidence
    if plan is None:
        text = f"{account.folder.plan} cannot be read."
        return page.section("Environment and plan", page.paragraph(text, "bad"))
    digests = plan.digests
    dirty = " with changes that are not committed" if digests.is_dirty else ""
    rows: list[tuple[str, object]] = [
        ("machine", tables.machine(plan)),
        ("ranks", f"{plan.world} on {plan.device}"),
        ("dtype", f"{plan.dtype}: {plan.dtype_reason}"),
        ("choice", plan.choice),
        ("code", None if digests.commit is None else f"{digests.commit}{dirty}"),
        ("versions", ", ".join(f"{name} {is_}" for name, is_ in plan.versions.items()) or None),
        ("config sha256", digests.config),
        ("constraints sha256", digests.constraints),
        ("deterministic", "yes" if plan.train.deterministic else "no"),
        ("series", plan.series),
    ]
    if evidence is not None:
        model, data = evidence.model, evidence.data
        rows += [
            ("parameters", _parameters(model.params_total, model.params_active)),
            ("data", data.source),
            ("training data sha256", data.train_sha256),
            ("validation data sha256", data.val_sha256),
            ("events sha256", evidence.artifacts.events_sha),
        ]
    return page.section(
        "Environment and plan",
        page.facts(rows),
        page.details("every value of the plan", page.table(("value", "is"), _values(plan))),
    )


def _parameters(total: int | None, active: int | None) -> str | None:
    if total is None or active is None:
        return None
    return f"{fmt.count(total)}, of which {fmt.count(active)} are active for a token"


def _values(plan: Plan) -> Iterator[tuple[str, str]]:
    """Every field of the plan's sections as `section.key` and its value."""
    for section in _SECTIONS:
        for name, value in asdict(getattr(plan, section)).items():
            yield f"{section}.{name}", str(value)


def _verification(account: Account) -> str:
    place, name = account.place, account.folder.run_id
    found = None if place is None else place.entry.verification
    if place is None or found is None:
        why = "There is no entry to verify." if place is None else "The entry is not verified."
        if account.is_alive:
            return page.section("Verification", page.paragraph(f"{why} The run is not over."))
        ask = f"{why} Its files, evaluation and first steps are checked by"
        return page.section("Verification", page.command(ask, f"n verify {name}"))
    numbers = page.facts(
        (
            ("status", place.entry.status),
            ("when", found.utc),
            ("where", found.verifier_machine),
            ("code of the verifier", found.verifier_commit),
            ("loss evaluated anew", _number(found.reeval_loss)),
            ("difference", _number(found.reeval_abs_diff)),
            ("difference to the long way", _number(found.naive_abs_diff)),
            ("validation text in training", _percent(found.overlap_share)),
            ("steps trained again", found.replay_steps),
            ("largest difference of them", _number(found.replay_max_abs_diff)),
        )
    )
    rows = [(check.verdict, check.id, check.reason) for check in found.checks]
    return page.section("Verification", numbers, page.table(("verdict", "check", "why"), rows))


def _exact(loss: float) -> str:
    return fmt.fixed(loss, decimals=5)


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{fmt.exact_seconds(value)} ({fmt.seconds(value)})"


def _joules(value: float) -> str:
    return fmt.fixed(value * 1e3, decimals=2, unit="mJ")


def _ms(seconds: float) -> str:
    return fmt.fixed(seconds, decimals=3)


def _number(value: float | None) -> str | None:
    return None if value is None else fmt.fixed(value, decimals=6)


def _percent(value: float | None) -> str | None:
    return None if value is None else fmt.percent(value, decimals=2)


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
