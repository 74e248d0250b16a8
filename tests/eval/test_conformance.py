"""The evaluator against the oracle, item by item, on a synthetic bundle and on the real one."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from nmoe.eval.core import centered, evaluate
from nmoe.eval.prompts import build_item
from nmoe.eval.tasks import read_tasks
from tests.eval import naive
from tests.eval.fakes import BOS, HashModel, Ranks, constant, encode_bytes, encode_words

GOLDEN = json.loads((Path(__file__).parent / "golden_regions.json").read_text())

# The accuracies of a full-set port with GPT-2 124M, and the baselines in percent: v1, and what
# DCLM's v2 changed.
GPT2 = {
    "hellaswag_zeroshot": (0.308803, 25),
    "jeopardy": (0.003307, 0),
    "bigbench_qa_wikidata": (0.282614, 0),
    "arc_easy": (0.418350, 25),
    "arc_challenge": (0.222696, 25),
    "copa": (0.62, 50),
    "commonsense_qa": (0.237510, 20),
    "piqa": (0.620783, 50),
    "openbook_qa": (0.276, 25),
    "lambada_openai": (0.324083, 0),
    "hellaswag": (0.307011, 25),
    "winograd": (0.593407, 50),
    "winogrande": (0.516180, 50),
    "bigbench_dyck_languages": (0.155, 0),
    "agi_eval_lsat_ar": (0.230435, 20),
    "bigbench_cs_algorithms": (0.423485, 0),
    "bigbench_operators": (0.090476, 0),
    "bigbench_repeat_copy_logic": (0.03125, 0),
    "squad": (0.0579, 0),
    "coqa": (0.132782, 0),
    "boolq": (0.554434, 62),
    "bigbench_language_identification": (0.2592, 9.1),
}
V2 = {"commonsense_qa": 40.3, "agi_eval_lsat_ar": 25, "bigbench_language_identification": 25}


def read_records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(result, records, expected_core, expected):
    """The result, its tasks and every recorded item equal the oracle's."""
    by_task = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    for score in result.tasks:
        items, acc, cen = expected[score.label]
        assert len(items) == len(by_task[score.label]) == score.n
        assert score.acc == acc
        assert score.centered == pytest.approx(cen, abs=1e-12)
        assert score.cropped == sum(item["cropped"] for item in items)
        for item, record in zip(items, by_task[score.label], strict=True):
            for key in ("index", "gold", "chosen", "correct"):
                assert record[key] == item[key], (score.label, item["index"], key)
            losses = [math.nan if loss is None else loss for loss in record["losses"]]
            assert losses == pytest.approx(item["losses"], abs=2e-6, nan_ok=True)
    assert result.core == pytest.approx(expected_core, abs=1e-12)


@pytest.mark.parametrize("encode", [encode_bytes, encode_words])
@pytest.mark.parametrize("max_tokens", [None, 60])
def test_evaluate_equals_oracle_when_bundle_is_synthetic(bundle, tmp_path, encode, max_tokens):
    expected = naive.evaluate(bundle, encode, BOS, HashModel(), max_tokens=max_tokens)
    out = tmp_path / "items.jsonl"
    result = evaluate(
        bundle, encode, BOS, HashModel(), records=out, max_tokens=max_tokens, batch_tokens=700
    )
    assert_same(result, read_records(out), *expected)
    assert any(0 < score.acc < 1 for score in result.tasks if score.baseline == 0)


@pytest.mark.parametrize("max_tokens", [None, 128])
def test_evaluate_equals_oracle_when_bundle_is_real(real_bundle, tmp_path, max_tokens):
    cap = 11
    expected = naive.evaluate(
        real_bundle, encode_words, BOS, HashModel(), cap=cap, max_tokens=max_tokens
    )
    out = tmp_path / "items.jsonl"
    result = evaluate(
        real_bundle, encode_words, BOS, HashModel(), cap=cap, records=out, max_tokens=max_tokens
    )
    assert_same(result, read_records(out), *expected)
    assert result.core_version == "dclm-v1-22"
    assert result.cap == cap


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_items_keep_their_result_when_batch_size_changes(bundle, tmp_path, batch_tokens):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    evaluate(bundle, encode_words, BOS, HashModel(), records=one)
    evaluate(bundle, encode_words, BOS, HashModel(), records=other, batch_tokens=batch_tokens)
    assert one.read_text() == other.read_text()


@pytest.mark.parametrize("world", [2, 3, 8])
def test_items_keep_their_result_when_ranks_change(bundle, tmp_path, world):
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    expected = evaluate(bundle, encode_words, BOS, HashModel(), records=alone)
    ranks = Ranks(world)
    models = [HashModel() for _ in range(world)]

    def work(rank):
        return evaluate(
            bundle,
            encode_words,
            BOS,
            ranks.in_step(models[rank]),
            records=together if rank == 0 else tmp_path / "nobody.jsonl",
            rank=rank,
            world=world,
            batch_tokens=300,
            gather=ranks.gather(rank),
        )

    results = ranks.run(work)
    assert [result.core for result in results] == [expected.core] * world
    assert together.read_text() == alone.read_text()
    assert not (tmp_path / "nobody.jsonl").exists()
    assert len({len(model.calls) for model in models}) == 1


def test_regions_equal_stored_hashes_when_bundle_is_real(real_bundle):
    for task in read_tasks(real_bundle):
        digest = hashlib.sha256()
        for index in range(5):
            item = build_item(task, index, encode=encode_words, bos_id=BOS)
            for prompt in item.prompts:
                digest.update(repr((prompt.tokens.tolist(), prompt.start, prompt.end)).encode())
        assert digest.hexdigest()[:16] == GOLDEN[task.label], task.label


def test_suite_has_its_counts_when_bundle_is_real(real_bundle):
    tasks = read_tasks(real_bundle)
    assert len(tasks) == 22
    assert sum(len(task.rows) for task in tasks) == 91_037
    assert {task.label: round(100 * task.baseline, 9) for task in tasks} == {
        label: baseline for label, (_, baseline) in GPT2.items()
    }
    assert [task.label for task in tasks] == list(GPT2)
    assert {task.label: task.num_shots for task in tasks if task.num_shots not in (0, 10)} == {
        "agi_eval_lsat_ar": 3
    }


def test_constant_model_chooses_first_option_when_all_losses_tie(real_bundle, tmp_path):
    out = tmp_path / "items.jsonl"
    result = evaluate(real_bundle, encode_words, BOS, constant, cap=40, records=out)
    records = read_records(out)
    assert {record["chosen"] for record in records} == {0, None}
    for score in result.tasks:
        own = [record for record in records if record["task"] == score.label]
        if score.task_type != "language_modeling":
            assert score.acc == np.mean([record["gold"] == 0 for record in own])
        else:
            assert score.acc == 0


def test_stored_accuracies_give_known_scores_when_baselines_are_v1_or_v2():
    v1 = [centered(acc, base / 100) for acc, base in GPT2.values()]
    v2 = [centered(acc, V2.get(label, base) / 100) for label, (acc, base) in GPT2.items()]
    assert sum(v1) / 22 == pytest.approx(0.121646, abs=1e-5)
    assert sum(v2) / 22 == pytest.approx(0.0961, abs=1e-4)
