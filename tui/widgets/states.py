"""The states of a run as glyph, word and role: never told apart by colour alone."""

from dataclasses import dataclass

from tui.widgets.rows import Role, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """How one state is shown, and what it means in a few words."""

    glyph: str
    word: str
    role: Role
    meaning: str

    @property
    def span(self) -> Span:
        return f"{self.glyph} {self.word.upper()}", self.role


def _sign(glyph: str, word: str, role: Role, meaning: str) -> tuple[str, Sign]:
    return word, Sign(glyph=glyph, word=word, role=role, meaning=meaning)


SIGNS: dict[str, Sign] = dict(
    (
        _sign("∅", "no-gpu", "warn", "no usable GPU"),
        _sign("○", "idle", "dim", "nothing has happened yet"),
        _sign("…", "checking", "accent", "looking at machine and files"),
        _sign("▤", "preparing", "accent", "making the dataset or the eval bundle"),
        _sign("▲", "launching", "accent", "starting the ranks"),
        _sign("⚙", "compiling", "accent", "building and warming up, off the clock"),
        _sign("●", "training", "good", "the clock runs"),
        _sign("◆", "validating", "accent", "measuring the loss, off the clock"),
        _sign("◌", "stopping", "warn", "saving a checkpoint, then leaving"),
        _sign("▣", "core-eval", "accent", "scoring CORE after the target"),
        _sign("✔", "done", "good", "target reached and scored"),
        _sign("✘", "missed", "warn", "out of steps above the target"),
        _sign("✖", "failed", "bad", "ended by an error"),
        _sign("⚡", "interrupted", "warn", "stopped before the end; can be resumed"),
        _sign("⏳", "stalled", "warn", "alive but silent for too long"),
        _sign("≋", "diverged", "bad", "the loss is no number any more"),
    )
)


# A GPU, by what keeps it from its full speed, the worst first.
GPU_SIGNS: dict[str, Sign] = dict(
    (
        _sign("✖", "lost", "bad", "fell off the bus; it must be reset"),
        _sign("▲", "slowed", "bad", "held back by heat or a failing supply"),
        _sign("◐", "behind", "warn", "its clock is below the others', and it does not say why"),
        _sign("▾", "capped", "warn", "at its power limit, which is usual at full load"),
        _sign("∅", "n/a", "dim", "tells nothing about itself"),
        _sign("○", "idle", "dim", "no kernel ran"),
        _sign("●", "ok", "good", "at work"),
    )
)


# A MoE layer, by how its rows are spread over its experts.
BALANCE_SIGNS: dict[str, Sign] = dict(
    (
        _sign("✖", "collapsed", "bad", "nearly all tokens go to the same experts"),
        _sign("×", "dead", "warn", "more experts without a row than chance leaves"),
        _sign("▲", "uneven", "warn", "an expert or the whole layer is far from even"),
        _sign("●", "even", "good", "as even as it should be"),
    )
)


# A row of the bench suite, beside the one before it.
BENCH_SIGNS: dict[str, Sign] = dict(
    (
        _sign("✖", "failed", "bad", "could not run"),
        _sign("▲", "slower", "warn", "slower than before, beyond both spreads"),
        _sign("▾", "faster", "good", "faster than before, beyond both spreads"),
        _sign("●", "same", "text", "as before"),
        _sign("◌", "unjudged", "dim", "one timing only: not judged"),
        _sign("○", "first", "dim", "nothing before it on these GPUs"),
    )
)


def sign(status: str) -> Sign:
    """The sign of a status; an unknown one is shown by its name."""
    return SIGNS.get(status) or Sign(glyph="?", word=status, role="dim", meaning="")
