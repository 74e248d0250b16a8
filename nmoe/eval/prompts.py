"""From a task row to token rows with the region to score: rendering, encoding, cropping.

A region [start, end) counts positions in the token row, where BOS is position 0. The token at
position t is predicted by the logits at t - 1, so a region that starts at 0 has no prediction.
Prompts and regions follow the suite as nanochat computes it (tasks/core and DCLM's ICL rules).
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nmoe.eval.tasks import CoreError, Task, options_of

# The ordinary tokens of a text, a list or an array of ids: no BOS, no special tokens.
Encode = Callable[[str], Sequence[int] | np.ndarray]

# The shots of item i come from a generator seeded with this number plus i.
SHOT_SEED = 1234


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One token row (int32, BOS first) and its scored region; empty when nothing can be scored."""

    tokens: np.ndarray
    start: int
    end: int

    @property
    def num_scored(self) -> int:
        """How many tokens the region scores."""
        return self.end - self.start if self.start > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One scored item: a prompt for each option, or one prompt for language modeling (no gold).

    `text_hash` identifies the rendered texts: items with equal hashes asked the same question.
    """

    index: int
    text_hash: int
    gold: int | None
    prompts: tuple[Prompt, ...]
    is_cropped: bool


def render(task: Task, index: int) -> list[str]:
    """The texts of item `index`: one an option; language modeling: with and without the answer."""
    rows, d = task.rows, task.delimiter
    row = rows[index]
    shots = "".join(_shot(task, shot) + "\n\n" for shot in _draw_shots(task, index))
    match task.task_type:
        case "multiple_choice":
            return [shots + row["query"] + d + choice for choice in row["choices"]]
        case "schema":
            return [shots + option + d + row["continuation"] for option in row["context_options"]]
        case "language_modeling":
            stem = shots + row["context"].strip() + d
            return [stem + row["continuation"], stem.strip()]


def build_item(
    task: Task, index: int, *, encode: Encode, bos_id: int, max_tokens: int | None = None
) -> Item:
    """Render and encode item `index`; with `max_tokens`, keep only the last tokens of each row.

    Raises CoreError when the answer does not extend the question token by token (language
    modeling), or when a region does not fit into `max_tokens`.
    """
    texts = render(task, index)
    prompts = encode_prompts(task, index, texts, encode=encode, bos_id=bos_id)
    return fit_item(task, index, prompts, text_hash=hash_texts(texts), max_tokens=max_tokens)


def hash_texts(texts: Sequence[str]) -> int:
    """64 bits that identify the rendered texts of an item."""
    data = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def encode_prompts(
    task: Task, index: int, texts: Sequence[str], *, encode: Encode, bos_id: int
) -> list[Prompt]:
    """The token rows of the rendered texts with their regions, as long as they are.

    Raises CoreError when the answer does not extend the question token by token.
    """
    rows = [_with_bos(encode(text), bos_id) for text in texts]
    match task.task_type:
        case "multiple_choice":
            start = common_prefix(rows)
            return [Prompt(tokens=row, start=start, end=len(row)) for row in rows]
        case "schema":
            length = common_prefix([row[::-1] for row in rows])
            return [Prompt(tokens=row, start=len(row) - length, end=len(row)) for row in rows]
        case "language_modeling":
            return [_continuation(_where(task, index), *rows)]


def fit_item(
    task: Task,
    index: int,
    prompts: Sequence[Prompt],
    *,
    text_hash: int,
    max_tokens: int | None,
) -> Item:
    """The item of encoded prompts; with `max_tokens`, only the last tokens of each row.

    Raises CoreError when a region does not fit into `max_tokens`.
    """
    where = _where(task, index)
    cropped = tuple(_crop(where, prompt, max_tokens) for prompt in prompts)
    if task.task_type == "language_modeling" and cropped[0].num_scored == 0:
        raise CoreError(f"{where}: its answer fills all {max_tokens} tokens of the context")
    return Item(
        index=index,
        text_hash=text_hash,
        gold=task.rows[index]["gold"] if options_of(task, task.rows[index]) else None,
        prompts=cropped,
        is_cropped=any(max_tokens is not None and len(row.tokens) > max_tokens for row in prompts),
    )


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """Number of leading tokens that all rows share."""
    shortest = min(len(row) for row in rows)
    differs = np.zeros(shortest, dtype=bool)
    for row in rows[1:]:
        differs |= row[:shortest] != rows[0][:shortest]
    return int(differs.argmax()) if differs.any() else shortest


def _where(task: Task, index: int) -> str:
    return f"task {task.label!r} item {index}"


def _with_bos(ids: Sequence[int] | np.ndarray, bos_id: int) -> np.ndarray:
    row = np.empty(1 + len(ids), dtype=np.int32)
    row[0], row[1:] = bos_id, ids
    return row


def _draw_shots(task: Task, index: int) -> list[dict]:
    if task.num_shots == 0:
        return []
    # `sample` draws positions among the other rows; a position at or after the item is one row on.
    drawn = random.Random(SHOT_SEED + index).sample(range(len(task.rows) - 1), task.num_shots)
    return [task.rows[j + (j >= index)] for j in drawn]


def _shot(task: Task, row: dict) -> str:
    match task.task_type:
        case "multiple_choice":
            return row["query"] + task.delimiter + row["choices"][row["gold"]]
        case "schema":
            return row["context_options"][row["gold"]] + task.delimiter + row["continuation"]
        case "language_modeling":
            return row["context"].strip() + task.delimiter + row["continuation"]


def _continuation(where: str, full: np.ndarray, stem: np.ndarray) -> Prompt:
    if len(stem) >= len(full) or not np.array_equal(full[: len(stem)], stem):
        raise CoreError(
            f"{where}: the tokens of the prompt are no strict prefix of prompt and answer: "
            f"got {len(stem)} and {len(full)} tokens. It cannot be scored with this tokenizer."
        )
    return Prompt(tokens=full, start=len(stem), end=len(full))


def _crop(where: str, prompt: Prompt, max_tokens: int | None) -> Prompt:
    if max_tokens is None or len(prompt.tokens) <= max_tokens:
        return prompt
    crop = len(prompt.tokens) - max_tokens
    if prompt.start < crop:
        raise CoreError(
            f"{where}: the scored region does not fit: got {prompt.end - prompt.start} tokens to "
            f"score, expected at most max_tokens = {max_tokens}"
        )
    # The copy lets go of the part that was cut off.
    return Prompt(
        tokens=prompt.tokens[crop:].copy(), start=prompt.start - crop, end=prompt.end - crop
    )
