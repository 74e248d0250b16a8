"""The balance of experts as values for the widgets; what is even depends on E and K.

Legend: L MoE layers, E experts, K of them for each token, T tokens a step.

A layer whose tokens all choose the same K experts has a coefficient of variation of
sqrt(E / K - 1) and a largest load of E / K times an even share: no router is further from even.
One that chooses by chance has sqrt(E / (T K)), and leaves E exp(-T K / E) experts without a row.
"""

import math
from dataclasses import dataclass

import numpy as np

from harness import format as fmt
from harness.loads import Floats, Shape
from harness.runs import RunState
from nmoe.events import RouterEvent
from tui.widgets.grid import Record, Table
from tui.widgets.heatmap import LOAD_BOUNDS, HeatMap, Place
from tui.widgets.rows import Role, Row
from tui.widgets.states import BALANCE_SIGNS, Sign
from tui.widgets.table import Column

# A router this near to collapse is uneven; the trainer gives up at 0.97 with K + 1 experts active.
_UNEVEN, _COLLAPSED = 0.5, 0.97
_LISTED = 6  # experts that are named at each end
COLUMNS = (
    Column(title="layer", align="right"),
    Column(title="balance"),
    Column(title="CV", align="right"),
    Column(title="entropy", align="right", rank=2),
    Column(title="max", align="right", rank=1),
    Column(title="dead", align="right"),
    Column(title="bias range", align="right", rank=4),
    Column(title="drift", align="right", rank=3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The newest router event of a run and what its numbers are measured by."""

    event: RouterEvent
    num_experts: int
    top_k: int
    step_tokens: int
    every: int

    @property
    def shape(self) -> Shape:
        return Shape(num_layers=len(self.event.layers), num_experts=self.num_experts)

    @property
    def highest(self) -> float:
        """The largest load there can be, over an even share."""
        return self.num_experts / self.top_k

    @property
    def collapse_cv(self) -> float:
        return math.sqrt(max(0.0, self.highest - 1))

    @property
    def chance_cv(self) -> float:
        return math.sqrt(self.num_experts / max(1, self.step_tokens * self.top_k))

    @property
    def chance_dead(self) -> float:
        """Experts that get no row when tokens choose by chance."""
        return self.num_experts * math.exp(-self.step_tokens * self.top_k / self.num_experts)

    @property
    def chance_drift(self) -> float:
        """Rows in other places than before when tokens choose by chance, as a fraction."""
        return math.sqrt(self.num_experts / (math.pi * max(1, self.step_tokens * self.top_k)))

    @property
    def past_record(self) -> int:
        """The record that drift is measured from: a tenth of the run ago, or the one before."""
        return self.event.record - max(1, self.event.record // 10)

    def num_dead(self, at: int) -> int:
        """Experts of MoE layer number `at` without a row."""
        return max(0, self.num_experts - self.event.experts_active[at])

    def sign(self, at: int) -> Sign:
        """The word for MoE layer number `at`."""
        cv, active = self.event.cv[at], self.event.experts_active[at]
        frac = cv / self.collapse_cv if self.collapse_cv > 0 else 0.0
        if self.num_experts > self.top_k + 1 >= active and frac >= _COLLAPSED:
            return BALANCE_SIGNS["collapsed"]
        if self.num_dead(at) > 2 * self.chance_dead + 0.5:
            return BALANCE_SIGNS["dead"]
        is_even = frac < _UNEVEN and self.event.max_load[at] < bounds(self)[-1]
        return BALANCE_SIGNS["even" if is_even else "uneven"]


def router(state: RunState) -> Router | None:
    """The router of a run; None before its first event, without a plan or without experts."""
    plan, event = state.plan, state.router
    if plan is None or event is None or not event.layers or not plan.experts.num_experts:
        return None
    return Router(
        event=event,
        num_experts=plan.experts.num_experts,
        top_k=plan.experts.top_k,
        step_tokens=plan.train.batch_size * plan.train.seq_len,
        every=max(1, plan.log.every),
    )


def bounds(router: Router) -> tuple[float, ...]:
    """Limits of the classes: those of many experts, closer where E / K leaves less room."""
    hot = min(LOAD_BOUNDS[-1], 1 + (router.highest - 1) / 2)
    if hot >= LOAD_BOUNDS[-1]:
        return LOAD_BOUNDS
    warm = min(LOAD_BOUNDS[2], 1 + (hot - 1) / 3)
    return (*LOAD_BOUNDS[:2], round(warm, 2), round((warm + hot) / 2, 2), round(hot, 2))


def heat(router: Router | None, loads_LE: Floats | None, *, problem: str = "") -> HeatMap:
    """Load of every expert over an even share."""
    if router is None or loads_LE is None:
        return HeatMap(empty=problem or "no router event yet")
    return HeatMap(
        revision=(router.event.step, router.event.record, router.event.layers),
        values_RC=loads_LE,
        row_names=tuple(map(str, router.event.layers)),
        bounds=bounds(router),
    )


def title(router: Router | None) -> str:
    """What the map shows and what it is measured by."""
    if router is None:
        return "experts"
    return (
        f"load over an even share  step {fmt.count(router.event.step)}"
        f"  E {router.num_experts}  K {router.top_k}"
    )


def drift(loads_LE: Floats, past_LE: Floats) -> Floats:
    """[L]: the fraction of rows that now go to other experts than before, 0 to 1."""
    return np.abs(loads_LE - past_LE).mean(axis=1) / 2


def layers(router: Router | None, drift_L: Floats | None = None) -> Table:
    """A row a MoE layer."""
    if router is None:
        return Table(columns=COLUMNS, empty="no router event yet")
    event = router.event
    records: list[Record] = []
    for at, layer in enumerate(event.layers):
        sign, dead = router.sign(at), router.num_dead(at)
        moved = None if drift_L is None or at >= len(drift_L) else float(drift_L[at])
        records.append(
            Record(
                id=str(at),
                cells=(
                    str(layer),
                    ((f"{sign.glyph} {sign.word}", sign.role),),
                    fmt.percent(event.cv[at], decimals=1),
                    fmt.fixed(event.entropy[at], decimals=3),
                    fmt.fixed(event.max_load[at], decimals=2),
                    ((fmt.count(dead), "warn" if dead else "dim"),),
                    fmt.fixed(event.bias_range[at], decimals=3),
                    fmt.percent(moved, decimals=1),
                ),
                orders=(layer, sign.word, event.cv[at], event.entropy[at], event.max_load[at],
                        dead, event.bias_range[at], moved),
            )
        )  # fmt: skip
    return Table(columns=COLUMNS, records=tuple(records))


def facts(
    router: Router | None, loads_LE: Floats | None, cursor: Place | None
) -> tuple[tuple[Row, ...], ...]:
    """One layer: its measures, the experts that stand out, and what the measures lie between."""
    if router is None:
        return ()
    at = 0 if cursor is None else min(cursor.row, len(router.event.layers) - 1)
    ends = () if loads_LE is None or at >= len(loads_LE) else _ends(loads_LE[at])
    return (_measures(router, at), *ends, _limits(router))


def _measures(router: Router, at: int) -> tuple[Row, ...]:
    event = router.event
    return (
        (router.sign(at).span,),
        _fact("CV", fmt.percent(event.cv[at], decimals=1)),
        _fact("max", f"{fmt.fixed(event.max_load[at], decimals=2)} x even"),
        _fact("active", f"{fmt.count(event.experts_active[at])}/{fmt.count(router.num_experts)}"),
        _fact("entropy", fmt.fixed(event.entropy[at], decimals=3)),
        _fact("bias range", fmt.fixed(event.bias_range[at], decimals=3)),
    )


def _limits(router: Router) -> tuple[Row, ...]:
    """What the measures lie between."""
    highest = f"{fmt.fixed(router.highest, decimals=1)} x even"
    return (
        _fact("by chance: CV", fmt.percent(router.chance_cv, decimals=1)),
        _fact("drift", fmt.percent(router.chance_drift, decimals=1)),
        _fact("collapsed: CV", f"{fmt.percent(router.collapse_cv)}, {highest}"),
    )


def _fact(label: str, text: str) -> Row:
    return ((f"{label} ", "dim"), (text, "text"))


def _ends(load_E: Floats) -> tuple[tuple[Row, ...], ...]:
    """The experts that stand out: hottest, dead, coldest."""
    order = [int(expert) for expert in np.argsort(-load_E, kind="stable")]
    alive = [expert for expert in order if load_E[expert] > 0]
    dead = sorted(set(order) - set(alive))
    more = len(dead) - _LISTED
    names = ", ".join(map(str, dead[:_LISTED])) + (f" and {more} more" if more > 0 else "")
    return (
        _listed("hottest", alive[:_LISTED], load_E, "heat6"),
        ((("dead    ", "dim"), (names or "none", "bad" if dead else "dim")),),
        _listed("coldest", alive[::-1][:_LISTED], load_E, "heat2"),
    )


def _listed(label: str, experts: list[int], load_E: Floats, role: Role) -> tuple[Row, ...]:
    parts: list[Row] = [
        ((f"{expert} ", "text"), (fmt.fixed(float(load_E[expert]), decimals=2), role))
        for expert in experts
    ]
    if not parts:
        return ()
    return (((f"{label} ", "dim"), *parts[0]), *parts[1:])


def past_step(router: Router) -> int:
    """The step that drift is measured from."""
    return router.event.step - (router.event.record - router.past_record) * router.every


def steps(router: Router, records_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """The step of each record, counted back from the newest one."""
    back_N = router.event.record - records_N
    return (router.event.step - back_N * router.every).astype(np.float64)
