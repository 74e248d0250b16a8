"""Stand-ins for a model and its tokenizer, and a writer of small bundles."""

import json
import re
import threading
import zlib

import numpy as np
import torch

BOS = 0
VOCABULARY = 997
_PIECE = re.compile(r" ?\w+|[ ]?[^\w\s]+|\s")


def encode_bytes(text):
    """Bytes, shifted past BOS."""
    return [1 + byte for byte in text.encode()]


def encode_words(text):
    """Words with their leading space, hashed: like GPT-2's BPE, a fifth of the bytes long."""
    return [1 + zlib.crc32(piece.encode()) % (VOCABULARY - 1) for piece in _PIECE.findall(text)]


class HashModel:
    """Logits that are a hash of all tokens up to the position.

    With `peek`, the true next token gets the highest logit at about that share of positions, so
    that free answers are sometimes right. `calls` holds the shape of every batch.
    """

    def __init__(self, *, vocabulary=VOCABULARY, peek=0.9):
        self.vocabulary, self.peek, self.calls = vocabulary, peek, []

    def __call__(self, tokens, rows, cols):
        self.calls.append(tuple(tokens.shape))
        assert tokens.dtype == rows.dtype == cols.dtype == torch.int64
        tokens, rows, cols = tokens.numpy(), rows.numpy(), cols.numpy()
        at = np.arange(tokens.shape[1], dtype=np.uint64)
        prefix = np.cumsum(_mix(tokens.astype(np.uint64) * np.uint64(65537) + at), axis=1)
        state = _mix(prefix[rows, cols])
        logits = _unit(_mix(state[:, None] + np.arange(self.vocabulary, dtype=np.uint64))) * 8
        sees = np.flatnonzero(_unit(_mix(state + np.uint64(1))) < self.peek)
        logits[sees, tokens[rows[sees], cols[sees] + 1]] = 9
        return torch.from_numpy(logits.astype(np.float32))


def _mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unit(x):
    return (x >> np.uint64(40)).astype(np.float64) / 2**24


def constant(tokens, rows, cols):
    """The model that knows nothing: all logits equal."""
    return torch.full((len(rows), VOCABULARY), 0.1)


class Ranks:
    """As many ranks as threads: `gather` for each, and a fence that breaks when calls differ."""

    def __init__(self, world):
        self.world = world
        self.fence = threading.Barrier(world, timeout=30)
        self.box = [None] * world

    def gather(self, rank):
        def gather(value):
            self.box[rank] = value
            self.fence.wait()
            everyone = list(self.box)
            self.fence.wait()
            return everyone

        return gather

    def in_step(self, model):
        def logits_at(tokens, rows, cols):
            self.fence.wait()
            return model(tokens, rows, cols)

        return logits_at

    def run(self, work):
        """work(rank) on every rank; the results or the exceptions, in rank order."""
        results = [None] * self.world

        def target(rank):
            try:
                results[rank] = work(rank)
            except (ValueError, AssertionError, threading.BrokenBarrierError) as error:
                results[rank] = error

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def task(label, task_type, rows, *, shots=0, delimiter=None, baseline=25):
    return {
        "label": label,
        "type": task_type,
        "rows": rows,
        "shots": shots,
        "delimiter": delimiter,
        "baseline": baseline,
    }


def choice_rows(number, options=4):
    return [
        {
            "query": f"Question {i}: what is {i * 7 % 5} and {i}?\n",
            "choices": [f"answer {(i * 3 + j) % 7} of {'x' * j} {i}" for j in range(options)],
            "gold": i * i % options,
        }
        for i in range(number)
    ]


def schema_rows(number):
    return [
        {
            "context_options": [f"Ann told Bob {i}", f"Bob {i} told Ann, twice {i % 3},"],
            "continuation": f"that item {i % 11} fell",
            "gold": i % 2,
        }
        for i in range(number)
    ]


def language_rows(number):
    return [
        {"context": f"  Row {i} after {i - 1} is {i % 4} then ", "continuation": f"{i % 9} end"}
        for i in range(number)
    ]


def write_bundle(root, tasks):
    """A bundle in the real layout, values one a line, so that the oracle can read it too."""
    yaml = ["icl_tasks:"]
    table = ["Eval Task,Task Category,Random baseline"]
    for one in tasks:
        uri = f"some_category/{one['label']}.jsonl"
        yaml += ["-", f"  label: {one['label']}", f"  dataset_uri: {uri}"]
        yaml += [f"  num_fewshot: [{one['shots']}]", f"  icl_task_type: {one['type']}"]
        if one["delimiter"] is not None:
            yaml.append(f"  continuation_delimiter: {json.dumps(one['delimiter'])}")
        table.append(f"{one['label']},some,{one['baseline']}")
        path = root / "eval_data" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in one["rows"])
        path.write_text("".join(lines), encoding="utf-8")
    (root / "core.yaml").write_text("\n".join(yaml) + "\n", encoding="utf-8")
    (root / "eval_meta_data.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    return root


def usual_tasks():
    """All three types, with and without shots, with several delimiters and odd whitespace."""
    odd = [
        {"context": "a line\u2028 sep", "continuation": "ends in a space "},
        {"context": "b\x85c", "continuation": "\n\nstarts with newlines"},
    ]
    return [
        task("choices", "multiple_choice", choice_rows(23), shots=3, delimiter="\nAnswer: "),
        task("boolq", "multiple_choice", choice_rows(11, 2), baseline=62),
        task("schemas", "schema", schema_rows(17), baseline=50),
        task("schemas_shot", "schema", schema_rows(9), shots=2, baseline=50),
        task("free", "language_modeling", language_rows(19), shots=2, baseline=0),
        task("free_odd", "language_modeling", language_rows(6) + odd, baseline=0),
        task("empty_delimiter", "multiple_choice", choice_rows(8), delimiter="", baseline=9.1),
    ]
