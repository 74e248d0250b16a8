"""The mini eval bundle: the same bytes everywhere, fair items, whole or not there."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from nmoe.data.manifest import DataError
from nmoe.data.minibundle import is_whole, mini_bundle_digest, write_mini_bundle
from nmoe.eval.core import evaluate
from nmoe.eval.prompts import render
from nmoe.eval.tasks import options_of, read_tasks

# Pinned: a different digest is a different bundle, and its scores cannot be compared.
DIGEST = "ec9f684f901c9488e26bc665e4dcf7cb7166089ed66094278757a989ae326393"


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini") / "bundle"
    write_mini_bundle(root)
    return root


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_bundle_is_the_same_when_written_anywhere(mini, tmp_path):
    assert write_mini_bundle(tmp_path / "deep" / "other") == DIGEST == mini_bundle_digest()
    assert contents(tmp_path / "deep" / "other") == contents(mini)
    assert is_whole(mini)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["other"]


def test_bundle_has_the_layout_of_the_real_one_when_written(mini):
    tasks = read_tasks(mini)
    assert {task.task_type for task in tasks} == {
        "multiple_choice",
        "schema",
        "language_modeling",
    }
    assert len(tasks) == 6
    assert all(50 <= len(task.rows) <= 100 for task in tasks)
    with (mini / "eval_meta_data.csv").open(newline="") as file:
        table = {row["Eval Task"]: row for row in csv.DictReader(file)}
    assert list(next(iter(table.values()))) == [
        "Eval Task",
        "Task Category",
        "Task Type",
        "#shots",
        "#datapoints",
        "Random baseline",
        "Centered Metric?",
        "Description",
    ]
    for task in tasks:
        assert int(table[task.label]["#datapoints"]) == len(task.rows)
        path = mini / "eval_data" / table[task.label]["Task Category"] / f"{task.label}.jsonl"
        assert hashlib.sha256(path.read_bytes()).hexdigest() in table[task.label]["Description"]


def test_manifest_lists_every_other_file_when_written(mini):
    manifest = json.loads((mini / "bundle.json").read_text())
    files = contents(mini)
    del files["bundle.json"]
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    assert manifest["digest"] == DIGEST
    assert manifest["num_items"] == sum(len(task.rows) for task in read_tasks(mini))


def test_guessing_earns_nothing_when_options_are_counted(mini):
    for task in read_tasks(mini):
        golds = Counter(row["gold"] for row in task.rows if options_of(task, row))
        if not golds:
            assert task.baseline == 0
            continue
        assert len(set(golds.values())) == 1, task.label
        assert task.baseline == 1 / len(golds)
        for row in task.rows:
            options = options_of(task, row)
            assert len(options) == len(set(options)) == len(golds)
            if task.task_type == "multiple_choice":
                assert len({len(option) for option in options}) == 1


def test_items_are_distinct_and_short_when_rendered(mini):
    for task in read_tasks(mini):
        texts = [tuple(render(task, i)) for i in range(len(task.rows))]
        assert len({json.dumps(row, sort_keys=True) for row in task.rows}) == len(task.rows)
        assert max(len(text.encode()) for pair in texts for text in pair) <= 120, task.label


def test_names_are_right_as_often_as_expected_when_reused(mini):
    (task,) = read_tasks(mini, labels=["same_name"])
    right = Counter(row["choices"][row["gold"]] for row in task.rows)
    seen = Counter(choice for row in task.rows for choice in row["choices"])
    assert seen == {name: 4 * times for name, times in right.items()}


def test_evaluator_scores_the_bundle_when_model_knows_nothing(mini):
    torch = pytest.importorskip("torch", reason="the evaluator needs torch")

    def uniform(tokens, rows, cols):
        return torch.zeros(len(rows), 257)

    result = evaluate(mini, lambda text: list(text.encode()), 256, uniform, max_tokens=128)
    assert result.core == pytest.approx(0, abs=1e-12)
    assert sum(score.cropped + score.empty_regions for score in result.tasks) == 0


@pytest.mark.parametrize("name", ["core.yaml", "eval_data/python_words/same_name.jsonl"])
def test_partial_bundle_is_redone_when_a_file_is_cut_or_missing(tmp_path, name):
    root = tmp_path / "bundle"
    write_mini_bundle(root)
    (root / name).write_bytes((root / name).read_bytes()[:-5])
    assert not is_whole(root)
    write_mini_bundle(root)
    assert is_whole(root)
    (root / name).unlink()
    assert not is_whole(root)
    write_mini_bundle(root)
    assert is_whole(root)


def test_whole_bundle_is_kept_when_written_again(mini):
    before = {path: path.stat().st_mtime_ns for path in mini.rglob("*")}
    write_mini_bundle(mini)
    assert {path: path.stat().st_mtime_ns for path in mini.rglob("*")} == before


def test_folder_is_refused_when_it_holds_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        write_mini_bundle(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(DataError, match="is a file"):
        write_mini_bundle(tmp_path / "thesis.txt")


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_mini_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_module_reaches_no_torch_when_imported():
    code = "import sys, nmoe.data.minibundle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
