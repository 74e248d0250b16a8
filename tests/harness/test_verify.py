"""The ladder of verification: an honest run climbs it, and every way to cheat fails on a rung."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness import board_file, consistency, launch, leaderboard, runs, verify
from harness.entry import Check, Entry, Verification
from harness.errors import RunError
from nmoe import checkpoint
from nmoe import verify as closer
from nmoe.attention.sdpa import SdpaAttention
from nmoe.build import Run, close
from nmoe.data.loader import validation_windows
from nmoe.data.manifest import read_manifest, write_manifest
from nmoe.events import Event, GpuEvent, OutcomeEvent, Record, StepEvent, ValEvent, encode
from nmoe.model import Transformer
from nmoe.paths import DataRoot, RunFolder, write_atomic
from nmoe.verify import Findings, probe
from tests.harness import finished_run, verified_run
from tests.tiny import open_run

# ------------------------------------------------------------------------------- a real tiny run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one honest run, trained and not entered yet."""
    root = verified_run.prepare(tmp_path_factory.mktemp("base") / "root")
    verified_run.train(root)
    return root.path


@pytest.fixture
def root(base: Path, tmp_path: Path) -> DataRoot:
    shutil.copytree(base, tmp_path / "root")
    return DataRoot(path=tmp_path / "root", reason="test")


@pytest.fixture
def folder(root: DataRoot) -> RunFolder:
    (path,) = root.runs.iterdir()
    return RunFolder(root=path)


@pytest.fixture(autouse=True)
def in_process(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Iterator[None]:
    """The process of nmoe.verify is this one, which has torch loaded already."""
    if "fresh_process" in request.node.name:
        yield
        return

    def call(folder: RunFolder, module: str, *arguments: str) -> Any:
        assert module == "nmoe.verify"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATA_DIR", str(folder.root.parent.parent))
            code = closer.main(arguments)
        told = capsys.readouterr()
        return subprocess.CompletedProcess((), code, told.out, told.err)

    monkeypatch.setattr(launch, "call", call)
    yield


def verdicts(report: verify.Report) -> dict[str, str]:
    return {check.id: check.verdict for check in report.verification.checks}


def failed(report: verify.Report) -> list[str]:
    return [check.id for check in report.failures]


def rewrite(folder: RunFolder, change: Callable[[Record], Record | None]) -> None:
    """Change, or with None drop, lines of the trainer's events."""
    lines = []
    for record in consistency.read(folder, root_of(folder)).records:
        changed = change(record)
        if changed is not None:
            lines.append(encode(changed) + "\n")
    folder.train.write_text("".join(lines))


def root_of(folder: RunFolder) -> DataRoot:
    return DataRoot(path=folder.root.parent.parent, reason="test")


def edited(record: Record, **changes: Any) -> Record:
    return replace(record, event=replace(record.event, **changes))


def test_honest_run_climbs_the_ladder_and_its_entry_is_verified(
    root: DataRoot, folder: RunFolder
) -> None:
    verified_run.enter(root, folder)
    report = verify.verify("last", root, level=4)
    assert failed(report) == []
    assert {name for name, verdict in verdicts(report).items() if verdict == "skip"} <= {
        *("V1.roofline", "V1.power", "V4.code")
    }
    assert report.status == "verified"
    board = leaderboard.load(root.board)
    entry = board.of_run(folder.run_id)
    assert entry is not None
    assert [change.status for change in entry.status_history] == ["provisional", "verified"]
    found = entry.verification
    assert found is not None
    assert found.reeval_abs_diff == 0.0
    assert found.naive_abs_diff is not None
    assert found.naive_abs_diff < 1e-5
    assert (found.replay_steps, found.replay_max_abs_diff) == (20, 0.0)
    assert not leaderboard.verify(board)
    # found again by the id of either record
    for record in board.entries:
        assert verify.find(record.entry_id[:12], root, [board]) == folder.run_id


def test_higher_rungs_are_looked_at_in_a_fresh_process(root: DataRoot, folder: RunFolder) -> None:
    report = verify.verify(folder.run_id, root, level=2)
    assert verdicts(report)["V2.reeval"] == "pass"
    assert report.status is None  # no entry yet
    assert failed(report) == []


# --------------------------------------------------------------------------------------- attacks


def lower_the_loss(record: Record) -> Record:
    event = record.event
    if isinstance(event, OutcomeEvent) or (isinstance(event, ValEvent) and event.step == 24):
        return edited(record, loss=1.0)
    return record


def test_edited_loss_is_found_by_the_checkpoint(root: DataRoot, folder: RunFolder) -> None:
    rewrite(folder, lower_the_loss)
    verified_run.enter(root, folder)  # before anybody looked
    report = verify.verify("last", root, level=2)
    assert failed(report) == ["V2.checkpoint"]
    assert report.status == "disputed"


def test_edited_loss_is_found_by_evaluation_when_the_checkpoint_agrees(
    root: DataRoot, folder: RunFolder
) -> None:
    rewrite(folder, lower_the_loss)
    (path,) = checkpoint.find(folder.checkpoints, kind="target")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["progress"]["loss"] = 1.0
    write_atomic(path / "manifest.json", json.dumps(manifest))
    report = verify.verify("last", root, level=2)
    assert failed(report) == ["V2.reeval"]


@pytest.mark.parametrize(
    ("change", "rungs"),
    [
        (lower_the_loss, {"V0.entry", "V0.artifacts"}),
        (lambda r: r if r.seq != 12 else None, {"V0.events", "V0.artifacts"}),
        (
            lambda r: (
                edited(r, train_s=r.event.train_s / 2)
                if isinstance(r.event, StepEvent | ValEvent | OutcomeEvent)
                else r
            ),
            {"V0.entry", "V0.artifacts", "V1.rate"},
        ),
        (
            lambda r: None if isinstance(r.event, ValEvent) and r.event.step == 16 else r,
            {"V0.events", "V0.entry", "V0.artifacts", "V1.selection"},
        ),
        (
            lambda r: (
                edited(r, tokens=r.event.tokens + 1)
                if isinstance(r.event, StepEvent) and r.event.step == 12
                else r
            ),
            {"V0.doubts", "V0.artifacts", "V1.tokens"},
        ),
        (
            lambda r: (
                edited(r, train_s=0.0)
                if isinstance(r.event, StepEvent) and r.event.step == 20
                else r
            ),
            {"V0.doubts", "V0.artifacts", "V1.clock"},
        ),
    ],
)
def test_event_file_edited_after_the_entry_is_found(
    root: DataRoot, folder: RunFolder, change: Any, rungs: set[str]
) -> None:
    verified_run.enter(root, folder)
    rewrite(folder, change)
    report = verify.verify("last", root, level=1)
    assert rungs <= set(failed(report))
    assert report.status == "disputed"


def test_swapped_checkpoint_is_found(root: DataRoot, folder: RunFolder, base: Path) -> None:
    verified_run.enter(root, folder)
    (path,) = checkpoint.find(folder.checkpoints, kind="target")
    weights = torch.load(path / "replicated.pt", weights_only=True)
    weights["model"]["head.weight"] *= 1.05
    info = checkpoint.write_part(path / "replicated.pt", weights)
    report = verify.verify("last", root, level=2)
    assert failed(report) == ["V2.checkpoint"]  # its hash is not that of its manifest
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["replicated.pt"] = {"bytes": info.bytes, "sha256": info.sha256}
    write_atomic(path / "manifest.json", json.dumps(manifest))
    report = verify.verify("last", root, level=2)
    assert failed(report) == ["V0.artifacts", "V2.reeval"]
    # the last check of each kind counts, and all of it can be made good again
    shutil.rmtree(path)
    (original,) = checkpoint.find(base / "runs" / folder.run_id / "checkpoints", kind="target")
    shutil.copytree(original, path)
    report = verify.verify("last", root, level=3)
    assert (failed(report), report.status) == ([], "verified")


def test_checkpoint_of_another_model_is_found(root: DataRoot, folder: RunFolder) -> None:
    plan = json.loads(folder.plan.read_text())
    plan["model"]["dim"] = 64
    folder.plan.write_text(json.dumps(plan))
    report = verify.verify("last", root, level=2)
    assert "V2.checkpoint" in failed(report)


def replace_training_text(root: DataRoot) -> None:
    """Training text is the validation text."""
    data = root.dataset("tiny")
    shutil.rmtree(data / "train")
    shutil.copytree(data / "val", data / "train")


def test_training_on_validation_text_is_found(tmp_path: Path) -> None:
    root = verified_run.prepare(tmp_path / "root")
    replace_training_text(root)
    folder = verified_run.train(root)
    verified_run.enter(root, folder)
    report = verify.verify("last", root, level=2)
    assert failed(report) == ["V2.overlap"]
    assert report.verification.overlap_share == 1.0
    assert report.status == "disputed"


def test_training_on_validation_text_is_found_when_the_text_was_put_back(
    tmp_path: Path, base: Path
) -> None:
    root = verified_run.prepare(tmp_path / "root")
    honest = tmp_path / "honest"
    shutil.copytree(root.dataset("tiny") / "train", honest)
    replace_training_text(root)
    folder = verified_run.train(root)
    shutil.rmtree(root.dataset("tiny") / "train")
    shutil.copytree(honest, root.dataset("tiny") / "train")
    verified_run.enter(root, folder)
    report = verify.verify("last", root, level=4)
    assert failed(report) == ["V4.replay"]


def test_changed_validation_text_is_found(root: DataRoot, folder: RunFolder) -> None:
    verified_run.enter(root, folder)
    val = root.dataset("tiny") / "val"
    (shard,) = read_manifest(val).shards
    content = bytearray((val / shard.name).read_bytes())
    content[-9] ^= 1
    (val / shard.name).write_bytes(content)
    assert "V2.data" in failed(verify.verify("last", root, level=2))
    manifest = read_manifest(val)
    write_manifest(val, replace(manifest, shards=(replace(shard, sha256="0" * 64),)))
    assert "V0.entry" in failed(verify.verify("last", root, level=1))


def look_ahead(self: SdpaAttention, x_BSD: torch.Tensor) -> torch.Tensor:
    """Attention over all positions, later ones included."""
    batch, seq, dim = x_BSD.shape
    shape = (batch, seq, 3, self.num_heads, dim // self.num_heads)
    q, k, v = self.qkv(x_BSD).view(shape).permute(2, 0, 3, 1, 4)
    y_BHSN = F.scaled_dot_product_attention(q, k, v)
    return self.out(y_BHSN.transpose(1, 2).reshape(batch, seq, dim))


def test_model_that_looked_ahead_is_found_by_honest_code(tmp_path: Path) -> None:
    root = verified_run.prepare(tmp_path / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SdpaAttention, "forward", look_ahead)
        folder = verified_run.train(root)
        verified_run.enter(root, folder)
        # and by the cheater's own code
        assert failed(verify.verify("last", root, level=3)) == ["V2.naive", "V3.causality"]
    assert set(failed(verify.verify("last", root, level=4))) == {"V2.reeval", "V4.replay"}


# ---------------------------------------------------------------------------------- the probes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Transformer, Any]]:
    """A model with weights that say something, and validation windows."""
    base = verified_run.prepare(tmp_path_factory.mktemp("model") / "root").path
    run: Run = open_run(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    windows = validation_windows(base / "tiny" / "val", seq_len=32, max_windows=8)
    yield run.model, windows
    close(run)


def probed(model: tuple[Transformer, Any]) -> list[str]:
    findings = Findings()
    probe(model[0], model[1], dtype="fp32", findings=findings)
    assert [check.id for check in findings.checks] == [
        *("V3.causality", "V3.normalisation", "V3.batch")
    ]
    return [check.id for check in findings.checks if check.verdict == "fail"]


def test_probes_find_nothing_in_an_honest_model(model: Any) -> None:
    assert probed(model) == []


@pytest.mark.parametrize("distance", [1, 5])
def test_probe_finds_a_peek_at_one_later_token(
    model: Any, monkeypatch: pytest.MonkeyPatch, distance: int
) -> None:
    honest = Transformer.forward

    def peek(self: Transformer, tokens_BS: torch.Tensor) -> Any:
        hidden, aux = honest(self, tokens_BS)
        later = self.embedding(tokens_BS.roll(-distance, dims=1))
        return hidden + 0.1 * later, aux

    monkeypatch.setattr(Transformer, "forward", peek)
    assert "V3.causality" in probed(model)


def test_probe_finds_a_loss_of_no_distribution(model: Any, monkeypatch: Any) -> None:
    honest = Transformer.nats

    def discount(self: Transformer, windows_BN: torch.Tensor) -> Any:
        """Bytes of the validation text are known to be frequent: their price is lowered."""
        nats, nats_T, aux = honest(self, windows_BN)
        return nats, 0.9 * nats_T, aux

    monkeypatch.setattr(Transformer, "nats", discount)
    assert probed(model) == ["V3.normalisation"]


def test_probe_finds_a_window_that_learns_from_its_neighbours(model: Any, monkeypatch: Any) -> None:
    honest = Transformer.forward

    def share(self: Transformer, tokens_BS: torch.Tensor) -> Any:
        hidden, aux = honest(self, tokens_BS)
        return hidden + 0.1 * hidden.mean(0, keepdim=True).cumsum(1), aux

    monkeypatch.setattr(Transformer, "forward", share)
    assert "V3.batch" in probed(model)


# ------------------------------------------------------------------ consistency, on made-up runs


def write_timed(
    root: DataRoot, *, scale: float = 1.0, gpus: list[Record] | None = None, **plan: Any
) -> RunFolder:
    """A run of 200 steps in 60 s whose stamps fit its clock, unless the clock is scaled."""
    made = finished_run.make_plan(**plan)
    folder = finished_run.write_run(root, plan=made)
    lines, now, last = [], 1000.0, 0.0
    for record in consistency.read(folder, root).records:
        event: Event = record.event
        if isinstance(event, StepEvent):
            now, last = now + event.train_s - last, event.train_s
            ms = scale * 1000 * event.train_s / event.step
            rate = event.tokens / (scale * event.train_s)
            event = replace(event, train_s=scale * event.train_s, ms=ms, tok_s=rate)
        elif isinstance(event, ValEvent | OutcomeEvent):
            event = replace(event, train_s=scale * event.train_s)
        if isinstance(event, ValEvent):
            now += event.seconds
        lines.append(encode(replace(record, time=now, event=event)) + "\n")
    folder.train.write_text("".join(lines))
    folder.gpus.write_text("".join(encode(record) + "\n" for record in gpus or ()))
    return folder


def checks_of(folder: RunFolder, root: DataRoot) -> dict[str, Check]:
    found = consistency.examine(consistency.read(folder, root), None)
    return {check.id: check for check in found}


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1.0, "pass"), (0.5, "fail"), (0.8, "fail"), (1.5, "fail")]
)
def test_clock_that_runs_at_another_speed_than_its_stamps_is_found(
    tmp_path: Path, scale: float, verdict: str
) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    checks = checks_of(write_timed(root, scale=scale), root)
    others = {name for name, check in checks.items() if check.verdict == "fail"}
    assert checks["V1.elapsed"].verdict == verdict, checks["V1.elapsed"]
    assert others <= {"V0.doubts", "V1.elapsed", "V1.clock"}


@pytest.mark.parametrize(("peak", "verdict"), [(1e3, "pass"), (1e-4, "fail"), (None, "skip")])
def test_speed_above_the_data_sheet_is_found(
    tmp_path: Path, peak: float | None, verdict: str
) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    hardware = replace(finished_run.make_plan().hardware, peak_tflops=peak)
    folder = write_timed(root, hardware=hardware)
    assert checks_of(folder, root)["V1.roofline"].verdict == verdict


@pytest.mark.parametrize(
    ("joules", "verdict"), [([0, 600, 1200], "pass"), ([0, 600, 5000], "fail"), ([5, 1], "fail")]
)
def test_energy_above_the_power_limit_is_found(
    tmp_path: Path, joules: list[float], verdict: str
) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    gpus = [
        Record(
            seq=i,
            time=1000.0 + i,
            attempt=0,
            event=GpuEvent(index=0, energy_j=energy, power_limit_w=700.0, power_w=600.0),
        )
        for i, energy in enumerate(joules)
    ]
    folder = write_timed(root, gpus=gpus)
    assert checks_of(folder, root)["V1.power"].verdict == verdict


# ---------------------------------------------------------------------- what becomes of entries


def found(**verdicts: Any) -> Verification:
    checks = tuple(
        Check(id=name.replace("_", "."), verdict=verdict, reason="")
        for name, verdict in verdicts.items()
    )
    return Verification(checks=checks, utc="2026-01-02T00:00:00+00:00")


ALL = {name.replace(".", "_"): "pass" for name in verify.NEEDED}


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    root = DataRoot(path=tmp_path_factory.mktemp("entry"), reason="test")
    leaderboard.finish(finished_run.write_run(root), root)
    return leaderboard.load(root.board).entries[0]


@pytest.mark.parametrize(
    ("results", "status"),
    [
        (ALL, "verified"),
        (ALL | {"V4_replay": "skip"}, "verified"),
        (ALL | {"V1_clock": "fail"}, "disputed"),
        (ALL | {"V2_reeval": "skip"}, "provisional"),
        ({"V1_clock": "pass"}, "provisional"),
    ],
)
def test_status_follows_from_the_checks(entry: Entry, results: Any, status: str) -> None:
    after = verify.judged(entry, found(**results))
    assert after.status == status
    assert after.status_history[-1].status == status


def test_task_whose_data_nobody_measured_stays_provisional(entry: Entry) -> None:
    official = replace(entry, result=replace(entry.result, task="fineweb-edu"))
    assert verify.judge(official, found(**ALL)) == (
        *("provisional", "nobody has measured the data of its task"),
    )


def test_results_of_other_rungs_are_kept(entry: Entry) -> None:
    first = verify.judged(entry, replace(found(**ALL), reeval_loss=1.25))
    again = verify.judged(first, found(V1_clock="fail"))
    assert (again.status, len(again.verification.checks)) == ("disputed", len(ALL) + 1)
    assert again.verification.reeval_loss == 1.25
    good = verify.judged(again, found(V1_clock="pass"))
    assert good.status == "verified"
    assert [change.status for change in good.status_history] == [
        *("provisional", "verified", "disputed", "verified")
    ]


def test_entry_whose_run_is_not_here_is_checked_by_its_board(root: DataRoot) -> None:
    folder = RunFolder(root=next(root.runs.iterdir()))
    verified_run.enter(root, folder)
    shutil.rmtree(folder.root)
    report = verify.verify(folder.run_id, root, level=4)
    assert verdicts(report) == {"V0.board": "pass", "V0.run": "skip"}
    assert report.status == "provisional"


def test_tampered_board_fails_its_first_rung(root: DataRoot, folder: RunFolder) -> None:
    verified_run.enter(root, folder)
    text = root.board.read_text()
    root.board.write_text(text.replace('"step":24', '"step":23'))
    report = verify.verify("last", root, level=0)
    assert {"V0.board", "V0.entry"} <= set(failed(report))


def test_verify_refuses_what_is_not_there_or_not_over(root: DataRoot, folder: RunFolder) -> None:
    with pytest.raises(RunError, match="no run 'nothing'"):
        verify.verify("nothing", root, level=0)
    fd = launch.take_run_lock(folder)
    try:
        assert runs.is_alive(folder)
        with pytest.raises(RunError, match="is not over"):
            verify.verify("last", root, level=0)
    finally:
        os.close(fd)


def test_amended_entry_is_never_lost_to_a_broken_board(root: DataRoot, folder: RunFolder) -> None:
    verified_run.enter(root, folder)
    content = root.board.read_bytes()
    with pytest.raises(board_file.BoardError):
        board_file.amend(root.board, "nobody", lambda entry: entry)
    assert root.board.read_bytes() == content
