"""A checkpoint scored again: the run's own CORE on one rank, and refusals by their code."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nmoe import checkpoint, dist, evaluate
from nmoe.build import make_model, make_transport
from nmoe.config import read_plan
from nmoe.data.minibundle import write_mini_bundle
from nmoe.data.tokenizer import ByteTokenizer
from nmoe.eval import core
from nmoe.events import CoreEvent, CoreTaskEvent
from nmoe.model import init_weights
from nmoe.paths import RunFolder, file_digest
from tests import tiny

REACH = ("target.target_loss=4.9", "train.seq_len=128", "train.micro_batch=4")


def train(root: Path, *overrides: str, world: int = 1, expect: int = 0) -> RunFolder:
    """A tiny run that reaches its target and scores CORE."""
    tiny.write_data(root)
    write_mini_bundle(root / "eval" / "pocket_bundle")
    words = [word for override in (*REACH, *overrides) for word in ("--set", override)]
    args = [str(tiny.write_config(root)), *words]
    if world == 1:
        assert tiny.run_here(args, root) == expect
    else:
        assert tiny.finish(tiny.start_ranks(args, root, world=world)) == [expect] * world
    return tiny.only_run(root)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of one rank that scored itself; its data is gone."""
    root = tmp_path_factory.mktemp("scored")
    folder = train(root)
    shutil.rmtree(root / "tiny")
    return folder


@pytest.fixture
def copied(scored: RunFolder, tmp_path: Path) -> RunFolder:
    """The scored run in a folder of the test's own."""
    shutil.copytree(scored.root, tmp_path / "runs" / scored.run_id)
    return RunFolder(root=tmp_path / "runs" / scored.run_id)


@pytest.fixture
def root(scored: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root of the scored run."""
    monkeypatch.setenv("DATA_DIR", str(scored.root.parent.parent))
    return scored.root.parent.parent


def score(*args: str | Path) -> int:
    return evaluate.main([str(arg) for arg in args])


def items(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def own_score(folder: RunFolder) -> CoreEvent:
    event = tiny.events(folder, CoreEvent)[-1].event
    assert isinstance(event, CoreEvent)
    return event


def test_score_is_the_runs_own_item_by_item(
    scored: RunFolder, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "core.json"
    assert score("--run", scored.root, "--out", out) == 0
    result = json.loads(out.read_text())
    assert result["core"] == own_score(scored).score
    assert items(out.with_suffix(".items.jsonl")) == items(scored.core_items)
    assert result["records"] == str(out.with_suffix(".items.jsonl"))
    assert result["checkpoint"].startswith("target_")
    own_tasks = [record.event for record in tiny.events(scored, CoreTaskEvent)]
    assert [(task["label"], task["acc"], task["n"]) for task in result["tasks"]] == [
        (event.name, event.acc, event.items)
        for event in own_tasks
        if isinstance(event, CoreTaskEvent)
    ]
    assert list(result["ci95"]) == list(own_score(scored).ci95 or ())
    printed = capsys.readouterr().out
    low, high = result["ci95"]
    assert f"CORE {result['core']:.6f} [{low:.4f}, {high:.4f}]" in printed
    assert all(task["label"] in printed for task in result["tasks"])
    assert "cropped items" in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["core.items.jsonl", "core.json"]


def test_score_takes_the_prompts_that_the_run_rendered(
    scored: RunFolder, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: object, text: str) -> None:
        raise AssertionError("encoded again")

    assert len(list((root / "cache" / "core").iterdir())) == own_score(scored).tasks
    monkeypatch.setattr(ByteTokenizer, "encode_array", never)
    assert score("--run", scored.root, "--records", tmp_path / "again.jsonl") == 0
    assert items(tmp_path / "again.jsonl") == items(scored.core_items)


def test_score_names_a_custom_bundle(
    scored: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    bundle = tmp_path / "eval" / "pocket_bundle"
    write_mini_bundle(bundle)
    (bundle / "bundle.json").write_text('{"status": "custom (core.yaml)"}')
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert score("--run", scored.root, "--cap", "10") == 0
    assert "bundle pocket_bundle, custom (core.yaml)" in capsys.readouterr().out


@pytest.mark.parametrize("batch_tokens", [1, 300, 1024])
def test_batches_change_no_answer_of_a_real_model(
    scored: RunFolder, root: Path, tmp_path: Path, batch_tokens: int
) -> None:
    plan, _, saved = evaluate.open_run(scored.root, None)
    model = evaluate.load_model(plan, saved, vocab_size=257)
    model.eval()
    tokenizer = ByteTokenizer()
    records = tmp_path / "items.jsonl"
    core.evaluate(
        root / "eval" / "pocket_bundle",
        tokenizer.encode,
        tokenizer.eos_id,
        model.logits_at,
        cap=plan.eval.cap,
        records=records,
        max_tokens=plan.train.seq_len,
        batch_tokens=batch_tokens,
    )
    own, again = items(scored.core_items), items(records)
    for item, other in zip(own, again, strict=True):
        assert item.pop("losses") == pytest.approx(other.pop("losses"), rel=1e-5)
    assert own == again


def test_score_of_a_named_checkpoint_takes_cap_and_tasks(
    scored: RunFolder, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = checkpoint.find(scored.checkpoints, kind="target")
    label = str(items(scored.core_items)[0]["task"])
    records = tmp_path / "some.jsonl"
    flags = ("--cap", "12", "--tasks", label, "--records", records, "--json")
    assert score("--checkpoint", path, *flags) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [(task["label"], task["n"]) for task in result["tasks"]] == [(label, 12)]
    assert (result["cap"], result["core_version"]) == (12, "custom")
    assert [item["task"] for item in items(records)] == [label] * 12
    assert label in captured.err


def test_score_shows_core_without_boolq_and_what_was_cropped(
    copied: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    bundle = tmp_path / "eval" / "pocket_bundle"
    write_mini_bundle(bundle)
    label = str(items(copied.core_items)[0]["task"])
    for name in ("core.yaml", "eval_meta_data.csv"):
        text = (bundle / name).read_text()
        (bundle / name).write_text(re.sub(rf"^(  label: )?{label}\b", r"\1boolq", text, flags=re.M))
    plan = json.loads(copied.plan.read_text())
    plan["train"]["seq_len"] //= 2
    copied.plan.write_text(json.dumps(plan))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert score("--run", copied.root, "--out", tmp_path / "core.json") == 0
    result = json.loads((tmp_path / "core.json").read_text())
    others = [task["centered"] for task in result["tasks"] if task["label"] != "boolq"]
    assert len(others) == len(result["tasks"]) - 1
    assert result["core_without_boolq"] == pytest.approx(sum(others) / len(others))
    cropped = sum(task["cropped"] for task in result["tasks"])
    assert cropped > 0
    printed = capsys.readouterr().out
    assert f"without boolq {result['core_without_boolq']:.6f}" in printed
    assert f"cropped items {cropped} (context 64)" in printed


def test_score_takes_the_newest_step_when_the_target_was_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path, "target.target_loss=0.01", "train.steps=12", expect=6)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    capsys.readouterr()
    assert score("--run", folder.root, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["checkpoint"], result["step"]) == ("step_00000012", 12)


def test_score_of_two_ranks_is_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(tmp_path, world=2)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    records = tmp_path / "items.jsonl"
    assert score("--run", folder.root, "--records", records) == 0
    own, again = items(folder.core_items), items(records)
    for item, other in zip(own, again, strict=True):
        # other batches, so other widths of the same matrix products
        assert item.pop("losses") == pytest.approx(other.pop("losses"), rel=1e-4)
    assert own == again


def write_weights(folder: Path, weights: Sequence[dict[str, torch.Tensor]]) -> checkpoint.Saved:
    """A checkpoint as so many ranks would have written it."""
    folder.mkdir(parents=True)
    replicated = {name: value for name, value in weights[0].items() if ".experts." not in name}
    parts = {"replicated.pt": replicated} | {
        f"rank_{rank}.pt": {name: value for name, value in part.items() if ".experts." in name}
        for rank, part in enumerate(weights)
    }
    files = {}
    for name, part in parts.items():
        torch.save({"model": part}, folder / name)
        files[name] = {
            "bytes": (folder / name).stat().st_size,
            "sha256": file_digest(folder / name),
        }
    progress = checkpoint.Progress(
        step=1, tokens=1, train_s=0, wall_s=0, compile_s=0, eval_s=0, checkpoint_s=0
    )
    manifest = checkpoint.Manifest(
        format=1,
        kind="target",
        world=len(weights),
        fingerprint="any",
        progress=progress,
        files=files,
    )
    return checkpoint.Saved(path=folder, manifest=manifest)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_experts_of_all_ranks_are_put_together_in_order(
    scored: RunFolder, tmp_path: Path, world: int
) -> None:
    plan = read_plan(scored.plan)
    cpu = torch.device("cpu")
    transport = make_transport(plan, dist.World(rank=0, size=1), cpu)
    model = make_model(plan, transport, vocab_size=256, device=cpu)
    init_weights(model, seed=3)
    whole = model.state_dict()
    share = plan.experts.num_experts // world
    ranks = [
        {
            name: value[rank * share : (rank + 1) * share].clone() if ".experts." in name else value
            for name, value in whole.items()
        }
        for rank in range(world)
    ]
    loaded = checkpoint.load_weights(write_weights(tmp_path / "target_1", ranks))
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_refused_with_two_when_the_call_is_wrong(
    scored: RunFolder, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--run", tmp_path) == 2
    assert "this is not a run folder" in capsys.readouterr().err
    assert score("--run", scored.root, "--tasks", "nothing") == 2
    assert "unknown tasks: got nothing" in capsys.readouterr().err
    before = scored.core_items.read_bytes()
    assert score("--run", scored.root, "--records", scored.core_items) == 2
    assert "outside the run folder" in capsys.readouterr().err
    assert scored.core_items.read_bytes() == before
    with pytest.raises(SystemExit, match="2"):
        score("--run", scored.root, "--cap", "-1")


def test_refused_with_four_when_the_bundle_is_missing_and_nothing_is_written(
    scored: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "core.json"
    assert score("--run", scored.root, "--out", out) == 4
    assert "eval bundle" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_refused_with_five_when_the_checkpoint_cannot_be_used(
    copied: RunFolder, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score("--checkpoint", tmp_path / "nothing") == 5
    assert "cannot be read" in capsys.readouterr().err
    (target,) = checkpoint.find(copied.checkpoints, kind="target")
    with (target / "rank_0.pt").open("ab") as file:
        file.write(b"more")
    assert score("--run", copied.root) == 5
    assert "was changed" in capsys.readouterr().err
    shutil.rmtree(copied.checkpoints)
    assert score("--run", copied.root) == 5
    assert "no whole checkpoint" in capsys.readouterr().err


def test_refused_with_five_when_the_weights_do_not_fit_the_plan(
    copied: RunFolder, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.loads(copied.plan.read_text())
    plan["model"]["dense_hidden"] *= 2
    plan["experts"]["hidden"] *= 2
    copied.plan.write_text(json.dumps(plan))
    assert score("--run", copied.root) == 5
    assert "does not fit its plan: size mismatch for" in (problem := capsys.readouterr().err)
    assert problem.count("\n") == 1


def test_refused_with_seven_when_the_model_gives_no_numbers(
    copied: RunFolder, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (target,) = checkpoint.find(copied.checkpoints, kind="target")
    weights = checkpoint.load_weights(
        checkpoint.Saved(path=target, manifest=checkpoint.read_manifest(target))
    )
    weights["norm.weight"].fill_(float("nan"))
    shutil.rmtree(target)
    saved = write_weights(target, [weights])
    raw = asdict(saved.manifest)
    (target / "manifest.json").write_text(json.dumps(raw))
    records = tmp_path / "items" / "core.jsonl"
    records.parent.mkdir()
    records.write_text("of an earlier score")
    assert score("--run", copied.root, "--records", records) == 7
    assert "not finite" in capsys.readouterr().err
    assert [path.read_text() for path in records.parent.iterdir()] == ["of an earlier score"]
