"""The evaluator's own behaviour: decisions, refusals, batches, records, reports."""

import json
import math

import pytest
import torch

from nmoe.eval.core import CoreError, centered, evaluate
from tests.eval import fakes
from tests.eval.fakes import BOS, HashModel, Ranks, constant, encode_bytes, encode_words


def one_task(root, task_type, rows, **options):
    return fakes.write_bundle(root, [fakes.task("only", task_type, rows, **options)])


def choices(*options, gold=0):
    return [{"query": "q", "choices": list(options), "gold": gold}]


def run(root, model, **options):
    """The result and the records of a byte-level run."""
    out = root / "items.jsonl"
    result = evaluate(root, encode_bytes, BOS, model, records=out, **options)
    return result, [json.loads(line) for line in out.read_text().splitlines()]


def fond_of(letter):
    """A model that always expects `letter` next."""

    def logits_at(tokens, rows, cols):
        logits = torch.zeros(len(rows), 257)
        logits[:, 1 + ord(letter)] = 5
        return logits

    return logits_at


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("go", "gob"), 0),
        (("gob", "go"), 0),
        (("", "a", "b"), 0),
        (("a", "", "b"), 2),
        (("a", "b", ""), 1),
    ],
)
def test_empty_region_is_decided_like_the_suite_when_a_choice_is_a_prefix(
    tmp_path, options, chosen
):
    one_task(tmp_path, "multiple_choice", choices(*options), baseline=50)
    result, records = run(tmp_path, fond_of("b"))
    assert records[0]["chosen"] == chosen
    assert records[0]["losses"].count(None) == 1
    assert result.tasks[0].empty_regions == 1


def test_lower_index_wins_when_choices_are_duplicates(tmp_path):
    one_task(tmp_path, "multiple_choice", choices("zz", "same", "zy", "same", gold=3))
    _, records = run(tmp_path, fond_of("s"))
    losses = records[0]["losses"]
    assert losses[1] == losses[3] == min(losses)
    assert records[0]["chosen"] == 1
    assert not records[0]["correct"]


def test_mean_not_sum_decides_when_lengths_differ(tmp_path):
    one_task(tmp_path, "multiple_choice", choices("aab", "c"))
    _, records = run(tmp_path, fond_of("a"))
    assert records[0]["losses"][0] * 3 > records[0]["losses"][1]
    assert records[0]["chosen"] == 0


def test_answer_is_right_only_when_every_position_is(tmp_path):
    rows = [{"context": "x", "continuation": text} for text in ("aaa", "aab", "baa", "a")]
    one_task(tmp_path, "language_modeling", rows, delimiter="", baseline=0)
    result, records = run(tmp_path, fond_of("a"))
    assert sorted(record["correct"] for record in records) == [False, False, True, True]
    assert result.tasks[0].acc == 0.5
    assert all(record["gold"] is None and record["chosen"] is None for record in records)


def test_lowest_id_is_the_argmax_when_logits_tie(tmp_path):
    rows = [{"context": "x", "continuation": text} for text in ("\x00", "a")]
    one_task(tmp_path, "language_modeling", rows, delimiter="", baseline=0)

    def all_but_bos(tokens, rows, cols):
        logits = torch.ones(len(rows), 257)
        logits[:, BOS] = 0
        return logits

    _, records = run(tmp_path, all_but_bos)
    assert sorted(record["correct"] for record in records) == [False, True]


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda logits: logits.fill_(math.nan), "not finite"),
        (lambda logits: logits.index_fill_(1, torch.tensor([3]), -math.inf), "not finite"),
        (lambda logits: logits[:, :40], "40 tokens"),
        (lambda logits: logits[1:], "expected"),
        (lambda logits: logits[0], "expected"),
    ],
)
def test_task_is_refused_when_logits_are_unusable(bundle, damage, part):
    def logits_at(tokens, rows, cols):
        return damage(torch.zeros(len(rows), fakes.VOCABULARY))

    with pytest.raises(CoreError, match=part):
        evaluate(bundle, encode_words, BOS, logits_at)


def test_all_ranks_stop_together_when_one_has_bad_logits(bundle):
    ranks, model = Ranks(3), HashModel()

    def broken(tokens, rows, cols):
        return model(tokens, rows, cols) * math.nan

    def work(rank):
        return evaluate(
            bundle,
            encode_words,
            BOS,
            ranks.in_step(broken if rank == 1 else model),
            rank=rank,
            world=3,
            gather=ranks.gather(rank),
        )

    errors = ranks.run(work)
    assert [type(error) for error in errors] == [CoreError] * 3
    assert {str(error) for error in errors} == {
        "task 'choices': the model gave logits that are not finite, expected finite ones"
    }


def test_work_is_refused_when_ranks_or_context_make_no_sense(bundle):
    for options in (
        {"rank": 2, "world": 2},
        {"rank": -1},
        {"world": 2},
        {"max_tokens": 1},
        {"batch_tokens": 0},
        {"batch_positions": 0},
    ):
        with pytest.raises(CoreError):
            evaluate(bundle, encode_words, BOS, constant, **options)


def test_batches_stay_within_budget_and_hold_whole_items_when_rows_are_short(bundle):
    seen = []

    def watch(tokens, rows, cols):
        seen.append((tokens, rows))
        assert len(rows) == len(cols)
        assert bool((rows[1:] >= rows[:-1]).all())
        return constant(tokens, rows, cols)

    evaluate(bundle, encode_words, BOS, watch, tasks=["choices"], batch_tokens=2000)
    assert len(seen) > 1
    for tokens, rows in seen:
        assert tokens.numel() <= 2000
        assert tokens.shape[0] % 4 == 0
        assert rows.unique().tolist() == list(range(tokens.shape[0]))
    lengths = [tokens.shape[1] for tokens, _ in seen]
    assert lengths == sorted(lengths, reverse=True)


def test_report_adds_up_when_tasks_have_different_baselines(bundle):
    told = []
    result = evaluate(
        bundle, encode_words, BOS, HashModel(), on_task=lambda *what: told.append(what)
    )
    assert [(i, n) for i, n, _ in told] == [(i, 7) for i in range(1, 8)]
    assert tuple(score for _, _, score in told) == result.tasks
    for score in result.tasks:
        assert score.centered == centered(score.acc, score.baseline)
        assert 0 <= score.ci95[0] <= score.acc <= score.ci95[1] <= 1
    values = {score.label: score.centered for score in result.tasks}
    assert result.core == pytest.approx(sum(values.values()) / 7)
    del values["boolq"]
    assert result.core_without_boolq == pytest.approx(sum(values.values()) / 6)
    assert result.ci95[0] < result.core < result.ci95[1]
    assert result.core_version == "custom"
    again = evaluate(bundle, encode_words, BOS, HashModel())
    assert (again.core, again.ci95) == (result.core, result.ci95)


def test_score_without_boolq_is_none_when_suite_has_none(bundle):
    result = evaluate(bundle, encode_words, BOS, constant, tasks=["free"])
    assert result.core_without_boolq is None
    assert [score.label for score in result.tasks] == ["free"]
    only = evaluate(bundle, encode_words, BOS, constant, tasks=["boolq"])
    assert only.core_without_boolq is None


def test_crops_are_counted_when_context_is_short(bundle):
    result = evaluate(bundle, encode_words, BOS, constant, max_tokens=40)
    whole = evaluate(bundle, encode_words, BOS, constant)
    assert {score.label: score.cropped > 0 for score in result.tasks}["choices"]
    assert all(score.cropped == 0 for score in whole.tasks)
    assert result.max_tokens == 40


def test_finished_tasks_stay_recorded_when_a_later_one_fails(tmp_path):
    good = fakes.task("good", "schema", fakes.schema_rows(5), baseline=50)
    bad = fakes.task(
        "bad", "language_modeling", [{"context": "a", "continuation": ""}], delimiter="", baseline=0
    )
    fakes.write_bundle(tmp_path, [good, bad])
    with pytest.raises(CoreError, match="'bad' item 0"):
        run(tmp_path, HashModel())
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["good"] * 5
