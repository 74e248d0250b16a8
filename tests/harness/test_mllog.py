"""Logs in the format of MLPerf: real runs against the rules of its checker, and rules that bite."""

import json
import shutil

import pytest

from harness import export, mllog
from harness.errors import RunError
from nmoe.events import PhaseEvent, ValEvent, decode
from nmoe.paths import DataRoot
from tests.harness import exported_runs, mllog_rules, verified_run
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import held


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> DataRoot:
    return verified_run.prepare(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def real(root):
    """Runs of the trainer: on a board, diverged, resumed, interrupted."""
    return exported_runs.train_all(root)


def log(name, root, board=None) -> str:
    account = export.gather(str(name), root, repo_board=board or root.path / "none.json")
    return mllog.text(account, root)


def lines_of(text, key):
    return [line for line in mllog_rules.parse(text) if line["key"] == key]


@pytest.mark.parametrize(
    ("name", "status", "lacks"),
    [
        ("done", "success", set()),
        ("resumed", "aborted", set()),
        # It never came to a validation.
        ("diverged", "aborted", {"missing: eval_accuracy"}),
        ("interrupted", "aborted", {"missing: eval_accuracy"}),
    ],
)
def test_log_of_a_real_run_keeps_the_rules_of_the_checker(real, root, name, status, lacks):
    text = log(real[name].root, root)
    assert set(mllog_rules.broken(text)) == lacks
    (stop,) = lines_of(text, "run_stop")
    assert stop["metadata"]["status"] == status


def test_log_lacks_only_what_would_make_it_a_submission(real, root):
    missing = {f"missing: {key}" for key in mllog_rules.MAY_LACK}
    assert set(mllog_rules.problems(log(real["done"].root, root))) == missing


def test_log_names_the_line_that_holds_each_fact(real, root):
    folder = real["resumed"]
    text = log(folder.root, root)
    plan = json.loads(folder.plan.read_text())
    told = folder.train.read_text().splitlines()
    for line in lines_of(text, "eval_accuracy"):
        event = decode(told[line["metadata"]["lineno"] - 1]).event
        assert isinstance(event, ValEvent)
        assert line["value"] == event.loss
        assert line["metadata"]["samples_count"] == event.step * plan["train"]["batch_size"]
    (seed,) = lines_of(text, "seed")
    named = folder.plan.read_text().splitlines()[seed["metadata"]["lineno"] - 1]
    assert named.strip() == f'"seed": {seed["value"]},'
    (samples,) = lines_of(text, "train_samples")
    manifest = (root.path / samples["metadata"]["file"]).read_text()
    tokens = json.loads(manifest)["total_tokens"]
    assert str(tokens) in manifest.splitlines()[samples["metadata"]["lineno"] - 1]
    assert samples["value"] == tokens // (plan["train"]["seq_len"] + 1)


def test_log_tells_a_resume_and_counts_each_validation_once(real, root):
    folder = real["resumed"]
    text = log(folder.root, root)
    (resume,) = lines_of(text, "nmoe_resume")
    events = [decode(line).event for line in folder.train.read_text().splitlines()]
    (step,) = [e.resume_step for e in events if isinstance(e, PhaseEvent) and e.resume_step]
    batch = lines_of(text, "global_batch_size")[0]["value"]
    assert resume["metadata"]["samples_count"] == step * batch
    counts = [line["metadata"]["samples_count"] for line in lines_of(text, "eval_accuracy")]
    assert counts == sorted(set(counts))
    assert len(counts) == 3


def test_validations_that_a_resume_took_back_are_not_told(data_dir):
    root = rec.data_root(data_dir)
    race = races.resumed(root)
    race.attempt = 2
    race.train(races.ev.PhaseEvent(phase="compiling", resume_step=1000), seconds=60.0)
    text = log(race.folder.root, root)
    batch = races.make_plan().train.batch_size
    told = [line["metadata"]["samples_count"] // batch for line in lines_of(text, "eval_accuracy")]
    assert told == list(range(128, 1001, 128))
    assert len(lines_of(text, "nmoe_resume")) == 2


def test_run_that_still_trains_has_no_run_stop_and_breaks_no_other_rule(data_dir):
    root = rec.data_root(data_dir)
    folder = rec.training(root).folder
    with held(folder):
        text = log(folder.root, root)
    found = mllog_rules.broken(text)
    # Its data is not there either.
    assert set(found) == {
        *("missing: run_stop", "missing: train_samples"),
        *("run_start: never closed", "block_start: never closed"),
    }


def test_run_that_never_trained_has_no_run_start(data_dir):
    root = rec.data_root(data_dir)
    text = log(rec.preparing(root).root, root)
    assert lines_of(text, "run_start") == lines_of(text, "run_stop") == []
    assert lines_of(text, "seed")


def test_loss_that_json_lacks_is_null_and_named(data_dir):
    root = rec.data_root(data_dir)
    recording = rec.training(root, stop=100)
    recording.train(rec.val_event(200, loss=float("nan")))
    text = log(recording.folder.root, root)
    last = lines_of(text, "eval_accuracy")[-1]
    assert last["value"] is None
    assert last["metadata"]["nf"] == ["value"]


def test_time_never_falls_when_a_clock_was_set_back(data_dir):
    root = rec.data_root(data_dir)
    recording = rec.training(root, stop=300)
    recording.time -= 3600
    recording.train(*rec.steps(600, start=300), rec.outcome("missed", step=600))
    times = [line["time_ms"] for line in mllog_rules.parse(log(recording.folder.root, root))]
    assert times == sorted(times)


def test_log_without_a_plan_is_refused(real, root, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(real["interrupted"].root, folder)
    (folder / "plan.json").write_text("{torn")
    with pytest.raises(RunError, match="needs the plan"):
        log(folder, root)


def test_line_numbers_are_those_of_the_keys():
    text = json.dumps({"a": {"b": 1, "c": {"d": 2}}, "e": [1], "d": None}, indent=1)
    lines = text.splitlines()
    found = mllog.line_numbers(text)
    assert set(found) == {"a", "a.b", "a.c", "e", "d"}
    assert all(f'"{name.split(".")[-1]}": ' in lines[at - 1] for name, at in found.items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [line for line in lines if line["key"] != "run_stop"], "run_stop"),
        (lambda lines: [*lines, lines[-1]], "run_stop: 2 times"),
        (lambda lines: list(reversed(lines)), "time runs backwards"),
        (lambda lines: [line | {"metadata": {}} for line in lines], "no line named"),
        (lambda lines: [line | {"value": "bf16"} for line in lines], "precision_in_linear: 'bf16'"),
        (
            lambda lines: [line for line in lines if line["key"] != "eval_start"],
            "eval_accuracy: outside of an evaluation",
        ),
    ],
)
def test_rules_find_what_breaks_them(real, root, change, problem):
    lines = change(mllog_rules.parse(log(real["done"].root, root)))
    text = "\n".join(mllog_rules.PREFIX + json.dumps(line) for line in lines)
    assert any(problem in each for each in mllog_rules.broken(text))
