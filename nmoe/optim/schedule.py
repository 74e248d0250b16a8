"""Learning-rate schedule as a pure function of tokens: linear warm-up, hold, decay to a floor."""

import math

from nmoe.config import Schedule


def lr_scale(schedule: Schedule, *, tokens: int, tokens_per_step: int) -> float:
    """Factor on the peak rate for the step that starts after `tokens` tokens.

    Warm-up rises linearly and is complete after `warmup_steps` steps; the hold counts from zero.
    """
    warmup = schedule.warmup_steps * tokens_per_step
    if tokens < warmup:
        return (tokens + tokens_per_step) / (warmup + tokens_per_step)
    past_hold = tokens - max(schedule.hold_tokens, warmup)
    if past_hold <= 0:
        return 1.0
    if past_hold >= schedule.decay_tokens:
        return schedule.floor if schedule.decay_tokens else 1.0
    progress = past_hold / schedule.decay_tokens
    shape = 1 - progress if schedule.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.floor + (1 - schedule.floor) * shape
