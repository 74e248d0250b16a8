"""Reading a bundle: what is kept as it is, and what is refused with the place and the reason."""

import json
import random

import pytest

from nmoe.eval.tasks import CoreError, read_tasks
from tests.eval import fakes


@pytest.fixture
def fresh(tmp_path):
    """A bundle of one task that a test may damage."""
    one = fakes.task("only", "multiple_choice", fakes.choice_rows(12), shots=3)
    return fakes.write_bundle(tmp_path, [one])


def data_file(bundle):
    return bundle / "eval_data" / "some_category" / "only.jsonl"


def refuse(bundle, *parts, **options):
    with pytest.raises(CoreError) as caught:
        read_tasks(bundle, **options)
    for part in parts:
        assert part in str(caught.value)


def test_rows_are_shuffled_before_the_cap_when_read(fresh):
    rows = [json.loads(line) for line in data_file(fresh).read_text().splitlines()]
    random.Random(1337).shuffle(rows)
    assert list(read_tasks(fresh)[0].rows) == rows
    assert list(read_tasks(fresh, cap=5)[0].rows) == rows[:5]
    assert read_tasks(fresh, cap=0) == read_tasks(fresh) == read_tasks(fresh, cap=99)


def test_text_keeps_line_separators_when_they_stand_inside_a_row(fresh):
    query = "a\u2028b\u0085c \u2029"
    row = {"query": query, "choices": ["x ", "\n\ny"], "gold": 1}
    data_file(fresh).write_text((json.dumps(row, ensure_ascii=False) + "\n") * 4, encoding="utf-8")
    assert read_tasks(fresh)[0].rows == (row,) * 4


def test_labels_select_tasks_in_suite_order_when_given(bundle):
    picked = read_tasks(bundle, labels=["free", "boolq"])
    assert [task.label for task in picked] == ["boolq", "free"]
    refuse(bundle, "got fre,", "free_odd", labels=["fre"])
    refuse(bundle, "an empty list", labels=[])


def test_cap_is_refused_when_shots_do_not_fit(fresh):
    assert len(read_tasks(fresh, cap=4)[0].rows) == 4
    refuse(fresh, "only", "got 3 rows", "at least 4", cap=3)
    refuse(fresh, "cap", "-1", cap=-1)


@pytest.mark.parametrize(
    "name", ["core.yaml", "eval_meta_data.csv", "eval_data/some_category/only.jsonl"]
)
def test_bundle_is_refused_when_a_file_is_missing_or_not_utf8(fresh, name):
    (fresh / name).write_bytes(b"\xff\xfe")
    refuse(fresh, name, "Prepare the bundle again")
    (fresh / name).unlink()
    refuse(fresh, name, "Prepare the bundle again")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "not JSON"),
        ('{"query": "a", ', "not JSON"),
        ("[1]", "expected an object"),
        ('{"query": 3, "choices": ["a", "b"], "gold": 0}', "query"),
        ('{"query": "a", "choices": "ab", "gold": 0}', "choices"),
        ('{"query": "a", "choices": ["a"], "gold": 0}', "choices"),
        ('{"query": "a", "choices": ["a", 1], "gold": 0}', "choices"),
        ('{"query": "a", "choices": ["a", "b"], "gold": 2}', "gold 2"),
        ('{"query": "a", "choices": ["a", "b"], "gold": -1}', "gold -1"),
        ('{"query": "a", "choices": ["a", "b"], "gold": true}', "gold True"),
        ('{"query": "a", "choices": ["a", "b"]}', "gold None"),
    ],
)
def test_row_is_refused_with_its_line_when_it_is_odd(fresh, line, part):
    lines = data_file(fresh).read_text().splitlines()
    lines[6] = line
    data_file(fresh).write_text("\n".join(lines) + "\n")
    refuse(fresh, "only.jsonl line 7", part)


def test_task_is_refused_when_its_file_is_empty(fresh):
    data_file(fresh).write_text("")
    refuse(fresh, "only.jsonl", "empty")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("icl_tasks: [", "not YAML"),
        ("tasks: []", "icl_tasks"),
        ("icl_tasks: []", "icl_tasks"),
        ("icl_tasks: [3]", "expected a mapping"),
        ("icl_tasks: [{label: only}]", "no key dataset_uri"),
        (
            "icl_tasks: [{label: a, dataset_uri: x, icl_task_type: essay, num_fewshot: [0]}]",
            "got icl_task_type 'essay'",
        ),
        (
            "icl_tasks: [{label: a, dataset_uri: x, icl_task_type: schema, num_fewshot: 3}]",
            "num_fewshot 3",
        ),
    ],
)
def test_core_yaml_is_refused_when_it_is_odd(fresh, text, part):
    (fresh / "core.yaml").write_text(text)
    refuse(fresh, "core.yaml", part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Eval Task,Baseline\nonly,25\n", "missing column Random baseline"),
        ("Eval Task,Random baseline\nother,25\n", "got the random baseline None"),
        ("Eval Task,Random baseline\nonly,\n", "nan"),
        ("Eval Task,Random baseline\nonly,many\n", "'many'"),
        ("Eval Task,Random baseline\nonly,100\n", "100.0"),
    ],
)
def test_baselines_are_refused_when_they_are_odd(fresh, text, part):
    (fresh / "eval_meta_data.csv").write_text(text)
    refuse(fresh, part)
