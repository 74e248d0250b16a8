"""The pocket target is worth reaching: it lies below what counting three bytes back achieves."""

from pathlib import Path

import numpy as np
import pytest

from nmoe.config import read_config
from nmoe.data.loader import validation_windows
from nmoe.data.prep import prepare
from nmoe.data.shards import TokenStream
from nmoe.data.sources import open_source
from nmoe.data.tokenizer import open_tokenizer
from nmoe.paths import REPO_ROOT
from tests.data.order3 import token_losses

POCKET = REPO_ROOT / "configs" / "speedrun" / "pocket.toml"
CONTEXT = 3


def stream_of(folder: Path) -> np.ndarray:
    stream = TokenStream(folder)
    tokens = np.empty(len(stream), dtype=np.int64)
    stream.read_into(tokens, 0)
    return tokens


def naive_loss(train: list[int], held_out: list[int], *, order: int, base: int) -> list[float]:
    """The formula of order3.py, read literally, with dictionaries of tuples."""

    def probability(history: tuple[int, ...], token: int, *, is_top: bool) -> float:
        length = len(history) + 1
        grams = [tuple(train[i : i + length]) for i in range(len(train) - length + 1)]
        if not is_top:
            longer = {tuple(train[i : i + length + 1]) for i in range(len(train) - length)}
            grams = [gram[1:] for gram in longer]
        shorter = 1 / base if not history else probability(history[1:], token, is_top=False)
        same = [gram for gram in grams if gram[:-1] == history]
        if not same:
            return shorter
        count = sum(gram[-1] == token for gram in same)
        return (max(count - 0.75, 0) + 0.75 * len(set(same)) * shorter) / len(same)

    losses = []
    for i, token in enumerate(held_out):
        history = tuple(held_out[max(0, i - order) : i])
        losses.append(-np.log(probability(history, token, is_top=len(history) == order)))
    return losses


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order3_equals_the_naive_formula_when_text_is_short(order: int) -> None:
    rng = np.random.default_rng(order)
    train, held_out = rng.integers(0, 4, 60), rng.integers(0, 5, 40)

    got = token_losses(train, held_out, order=order, vocab_size=5)

    want = naive_loss(train.tolist(), held_out.tolist(), order=order, base=5)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_pocket_target_lies_below_an_order3_model_on_the_presets_own_windows(
    tmp_path: Path,
) -> None:
    config = read_config(POCKET)
    tokenizer = open_tokenizer(config.data.tokenizer)
    for part in ("train", "val"):
        prepare(open_source("stdlib", [part]), tokenizer, output=tmp_path / part, name=part)
    seq_len = config.train.seq_len
    windows = validation_windows(
        tmp_path / "val", seq_len=seq_len, max_windows=config.validation.windows
    )
    held_out = stream_of(tmp_path / "val")[: windows.size]
    assert np.array_equal(held_out, windows.ravel())

    losses = token_losses(
        stream_of(tmp_path / "train"), held_out, order=CONTEXT, vocab_size=tokenizer.vocab_size
    )

    # The first token of a window is context, never a target. Here the three tokens of history are
    # there even at a window's start, unlike for a model: the bar is too strict, if anything.
    order3 = float(losses.reshape(windows.shape)[:, 1:].mean())
    assert config.target.target_loss < order3, f"an order-3 byte model reaches {order3:.4f}"
