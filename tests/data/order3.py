"""An n-gram model of tokens, interpolated Kneser-Ney, as the bar that a trained model must clear.

    p_n(w | h) = max(c(hw) - d, 0) / c(h) + d * types(h) / c(h) * p_{n-1}(w | h')

c counts occurrences at the highest order and distinct left neighbours below it; h' drops the
oldest token of h; p_0 is uniform. Kneser & Ney 1995, as in Chen & Goodman 1999, one discount.
"""

import numpy as np

DISCOUNT = 0.75


def token_losses(
    train: np.ndarray, held_out: np.ndarray, *, order: int, vocab_size: int
) -> np.ndarray:
    """Nats of each held-out token given the `order` tokens before it, float64 [len(held_out)]."""
    train, held_out = train.astype(np.int64), held_out.astype(np.int64)
    probability = np.full(len(held_out), 1.0 / vocab_size)
    for length in range(1, order + 2):
        grams, counts = _counts(train, length, is_top=length == order + 1, base=vocab_size)
        histories, starts = np.unique(grams // vocab_size, return_index=True)
        totals = np.add.reduceat(counts, starts)
        types = np.diff(np.append(starts, len(grams)))

        asked = _grams(held_out, length, base=vocab_size)
        count = _lookup(grams, counts, asked)
        total = _lookup(histories, totals, asked // vocab_size)
        kinds = _lookup(histories, types, asked // vocab_size)
        shorter = probability[length - 1 :]
        mixed = np.maximum(count - DISCOUNT, 0.0) + DISCOUNT * kinds * shorter
        probability[length - 1 :] = np.where(total > 0, mixed / np.maximum(total, 1), shorter)
    return -np.log(probability)


def _counts(
    tokens: np.ndarray, length: int, *, is_top: bool, base: int
) -> tuple[np.ndarray, np.ndarray]:
    if is_top:
        return np.unique(_grams(tokens, length, base=base), return_counts=True)
    longer = np.unique(_grams(tokens, length + 1, base=base))
    return np.unique(longer % base**length, return_counts=True)


def _grams(tokens: np.ndarray, length: int, *, base: int) -> np.ndarray:
    """Every run of `length` tokens as one number; the last token is the lowest digit."""
    count = len(tokens) - length + 1
    keys = np.zeros(count, dtype=np.int64)
    for offset in range(length):
        keys = keys * base + tokens[offset : offset + count]
    return keys


def _lookup(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0)
