"""The bench of a whole step, on a machine without a GPU: the tiny sizes of every preset."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import runs, step, step_ranks
from bench.__main__ import main
from bench.parts import PARTS
from bench.peer import peer_of
from bench.plain_trainer import PlainTrainer
from bench.rows import BOTH, LIMIT, OURS, STEP, Row, load, parse, summarize
from bench.runs import PRESETS, SMALLEST, opened, plan_of, preset_file, size_for, write_data
from bench.step import DETERMINISTIC, EVERY, MUON, PLAIN, Job, measure
from bench.timing import intervals
from nmoe import standalone
from nmoe.build import Run
from nmoe.config import Hardware, read_config
from nmoe.data.manifest import verify
from nmoe.data.shards import TokenStream
from nmoe.data.tokenizer import open_tokenizer
from nmoe.dist import World
from nmoe.train import train_step
from tests.bench.results import a_machine, a_row
from tests.bench.test_suite import SUMMARY, bench

ONE = World(rank=0, size=1)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(presets=("super",), device="cpu", rows=tmp_path / "rows.jsonl", steps=1)


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Opens runs of presets, which are closed behind the test."""
    stack = ExitStack()

    def open_one(preset: str, *more: str) -> Run:
        folder, size = tmp_path / preset, size_for("cpu")
        folder.mkdir()
        write_data(folder, size, device="cpu")
        plan = plan_of(preset, folder, size, device="cpu", world=ONE, more=more)
        return stack.enter_context(opened(plan, folder, world=ONE, say=lambda _: None))

    with stack:
        yield open_one


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    before = SUMMARY.read_bytes() if SUMMARY.exists() else None
    done = bench("step", "--presets", "super,dense", "--steps", "2", "--json", "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (SUMMARY.read_bytes() if SUMMARY.exists() else None) == before
    return [parse(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("preset", ["super", "dense"])
def test_every_step_is_a_row_of_tokens_a_second(rows: list[Row], preset: str):
    found = [row for row in rows if row.unit == "tok/s" and row.shape == preset]
    steps = {(row.what, row.implementation): row for row in found}
    assert set(steps) == {
        (STEP, OURS),
        (STEP, PLAIN),
        (EVERY, OURS),
        (MUON, OURS),
        (DETERMINISTIC, OURS),
    }
    for (what, _), row in steps.items():
        assert row.timings == 2
        assert row.us is not None
        tokens = 32 * (2 if what == EVERY else 8)
        assert row.rate == pytest.approx(1e6 * tokens / row.us)


def test_peer_does_the_same_work(rows: list[Row]):
    peers = [row for row in rows if row.implementation == PLAIN]
    assert len(peers) == 2
    for row in peers:
        assert set(row.errors) == {"loss", "gradient norm"}
        assert row.error is not None
        assert row.error < 1e-5  # fp32 here


def test_parts_and_gaps_are_the_step(rows: list[Row]):
    for preset in ("super", "dense"):
        found = {row.what: row for row in rows if row.shape == preset}
        parts = {name: row for name, row in found.items() if name.startswith("part ")}
        assert set(parts) <= {f"part {name}" for name in PARTS}
        assert {"part attention", "part head", "part optimizer", "part gaps"} <= set(parts)
        assert ("part experts" in parts) == (preset == "super")
        assert ("part dense FFN" in parts) == (preset == "dense")
        assert all(row.unit == "% of the step" for row in parts.values())
        assert sum(row.rate or 0 for row in parts.values()) >= 99.9
        assert "floor" in parts["part head"].note


def test_memory_and_logging_are_figures(rows: list[Row]):
    for preset in ("super", "dense"):
        found = {row.what: row for row in rows if row.shape == preset}
        assert (found["step peak memory"].rate or 0) > 0
        assert found["logging and events"].note.endswith("ms a log step, one in 10")


def test_two_ranks_measure_the_same_presets(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    done = bench(
        *("step", "--presets", "super", "--gpus", "2", "--steps", "1", "--quick"),
        *("--rows", str(file)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row.what: row for row in load(file)}
    assert found[STEP].rate == pytest.approx(1e6 * 32 * 4 / found[STEP].us)
    assert {"part dispatch", "part combine"} <= set(found)
    assert EVERY not in found


def test_rank_that_fails_ends_the_others_and_says_why(job: Job):
    """The plan of a batch that the ranks cannot share is refused on each of them."""
    problems = step_ranks.run(replace(job, micro_batch=3, is_quick=True), gpus=2)
    assert len(problems) == 1
    assert problems[0].startswith("a rank failed: ")
    assert "[train] batch_size: got 8" in problems[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--presets", "super,pocket"), "error: presets: got 'super,pocket', expected some of"),
        (("--presets", ""), "error: presets: got '', expected some of"),
        (("--micro-batch", "3"), "error: micro-batch: got 3 sequences on each of 1 ranks"),
        (("--gpus", "3"), "error: micro-batch: got 2 sequences on each of 3 ranks"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(capsys, arguments, reason):
    assert main(["step", *arguments]) == 2
    assert capsys.readouterr().err.startswith(reason)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_numbers_of_steps_are_positive(capsys, number: str):
    with pytest.raises(SystemExit) as stop:
        main(["step", f"--steps={number}"])
    assert stop.value.code == 2
    assert f"argument --steps: got {number}, expected a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_plain_trainer_finds_the_loss_and_norm_of_every_preset(open_run, preset: str):
    run = open_run(preset)
    for _ in range(3):
        train_step(run)
    peer = peer_of(run)
    assert len(peer.windows) == run.plan.accumulation
    peer.check()
    assert peer.is_right
    assert max(peer.errors.values()) < 1e-5


def test_plain_trainer_finds_them_in_bf16_too(open_run):
    run = open_run("super", "train.dtype=bf16")
    peer = peer_of(run)
    peer.check()
    assert 0 < max(peer.errors.values()) < LIMIT


def test_plain_trainer_goes_on_as_the_run_does(open_run):
    """After an update of its own, bias of the routers included, it finds the next loss, too."""
    run = open_run("super", "experts.bias_rate=0.05", "schedule.warmup_steps=1")
    peer = peer_of(run)
    peer.check()
    bias = [layer.router.bias_E for _, layer in run.model.moe_layers()]
    theirs = [block.moe.bias_E for block in peer.trainer._blocks]
    for ours_E, theirs_E in zip(bias, theirs, strict=True):
        assert ours_E.abs().max() > 0.01
        assert ours_E.allclose(theirs_E)


def test_peer_with_other_weights_is_not_right(open_run):
    run = open_run("dense")
    peer = peer_of(run)
    peer.trainer._head.data *= 1.5
    peer.check()
    assert peer.errors["loss"] > LIMIT
    assert not peer.is_right


def test_peer_that_fails_is_a_note_and_ours_is_measured(monkeypatch, job: Job):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PlainTrainer, "step", fail)
    assert measure(replace(job, presets=("dense",)), ONE) == []
    found = {(row.what, row.implementation): row for row in load(job.rows)}
    assert found[STEP, PLAIN].note == "failed: out of memory"
    assert found[STEP, OURS].us
    assert found[EVERY, OURS].us


def test_peer_without_room_beside_ours_is_measured_after_it(monkeypatch, job: Job):
    monkeypatch.setattr(step._Preset, "_has_room", lambda *_: False)
    assert measure(replace(job, presets=("dense",)), ONE) == []
    found = {(row.what, row.implementation): row for row in load(job.rows)}
    assert found[STEP, PLAIN].us
    assert "do not fit" in found[STEP, PLAIN].note


def test_step_of_ours_that_fails_is_a_problem_and_the_others_go_on(monkeypatch, job: Job):
    real = step.train_step

    def fail_officially(run: Run) -> None:
        is_adamw = run.plan.optim.matrices == "adamw"
        if run.plan.accumulation > 1 and is_adamw and not run.plan.train.deterministic:
            raise RuntimeError("out of memory\nand more")
        real(run)

    monkeypatch.setattr(step, "train_step", fail_officially)
    problems = measure(replace(job, presets=("dense",), has_peer=False), ONE)
    assert problems == ["dense, step: failed: out of memory"]
    found = {row.what: row for row in load(job.rows)}
    assert found[STEP].note == "failed: out of memory"
    assert found[EVERY].us
    assert found[MUON].us


@pytest.mark.parametrize(
    ("preset", "gpus", "layers"),
    [("super", 1, 12), ("dense", 1, 12), ("moe", 4, 12), ("ultra", 1, 1), ("ultra", 4, 4)],
)
def test_plan_of_a_gpu_is_the_preset(
    monkeypatch, tmp_path: Path, preset: str, gpus: int, layers: int
):
    """Only the synthetic data and what is said of `ultra` differ from the file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(standalone, "_hardware", lambda _: Hardware())
    size = size_for("cuda")
    world = World(rank=0, size=gpus)
    plan = plan_of(preset, tmp_path, size, device="cuda", world=world, more=())
    config = read_config(preset_file(preset))
    assert plan.train.batch_size * plan.train.seq_len == 524_288
    assert plan.train.micro_batch * plan.train.seq_len == 65_536
    assert (plan.dtype, plan.model.num_layers) == ("bf16", layers)
    assert replace(plan.model, num_layers=12) == config.model
    assert (plan.experts, plan.optim) == (config.experts, config.optim)


def test_what_is_compiled_ahead_can_be_sent_to_processes(job: Job):
    todo = step_ranks._to_compile(replace(job, presets=("dense", "super", "ultra")))
    assert {"peer of super", "trainer of dense", "trainer of super, Muon"} <= set(todo)
    assert not any("peer of ultra" in name or "trainer of ultra" in name for name in todo)
    assert {"sort ultra", "up super", "dw13 in fp32 super"} <= set(todo)
    assert pickle.loads(pickle.dumps(todo)).keys() == todo.keys()
    quick = step_ranks._to_compile(replace(job, is_quick=True))
    assert not any("peer" in name or "Muon" in name for name in quick)


@pytest.mark.parametrize("preset", SMALLEST)
def test_smallest_form_of_a_preset_trains_and_so_does_its_peer(job: Job, preset: str):
    assert step_ranks._train_few(preset, job, "optim.matrices=muon") == ""
    assert step_ranks._train_peer(preset, job) == ""
    assert "dim must be a multiple of num_heads" in step_ranks._train_few(
        preset, job, "model.dim=33"
    )


def test_random_tokens_have_the_vocabulary_of_the_presets(tmp_path: Path):
    size = replace(size_for("cuda"), micro_batch=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "WINDOWS", 2)
        write_data(tmp_path, size, device="cuda")
    tokenizer = open_tokenizer(str(tmp_path / "vocabulary.json"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50_257, 50_256)
    stream = TokenStream(tmp_path / "data" / "train")
    assert stream.manifest.vocab_size == 50_257
    windows_WS = stream.windows(np.arange(2), seq_len=2048)
    assert windows_WS.max() > 50_000
    assert len(np.unique(windows_WS)) > 3_000
    assert verify(tmp_path / "data" / "val").total_tokens == 2049


def test_intervals_are_those_of_each_piece():
    done = []
    times = intervals([lambda: done.append(1), lambda: sum(range(200_000))], device="cpu")
    assert done == [1]
    assert len(times) == 2
    assert 0 < times[0] < times[1]


def test_summary_takes_steps_of_fewer_timings_and_of_whole_presets_only():
    def a_step(**changes: object) -> Row:
        facts = {"what": STEP, "shape": "super", "unit": "tok/s", "rate": 350_123.44, "timings": 10}
        return a_row(**{**facts, **changes})

    two = a_machine(gpus=2)
    summary = summarize(
        {},
        [
            a_step(),
            replace(a_step(rate=310_000.0), machine=two),
            a_step(shape="dense", rate=450_000.0),
            a_step(shape="moe"),
            a_step(what=EVERY, rate=1.0),
            a_step(implementation=PLAIN, rate=1.0),
            a_step(timings=7, rate=1.0),
            a_row(what=BOTH, timings=10),
        ],
    )
    assert {name: (each["value"], each["unit"]) for name, each in summary.items()} == {
        "super_tok_s_1gpu": (350_123.4, "tok/s"),
        "super_tok_s_per_gpu_2gpu": (310_000.0, "tok/s"),
        "dense_tok_s_1gpu": (450_000.0, "tok/s"),
    }
