"""What a checkpoint says for itself, in a process of its own: re-evaluation, probes, replay.

    python -m nmoe.verify --run RUN_FOLDER [--level 2|3|4] [--steps N]

One JSON line: {"checks": [{"id", "verdict", "reason"}], "reeval_loss", ...}. Rung V2 evaluates the
checkpoint of the passing validation again, V3 probes causality, normalisation and independence of
the batch, V4 trains the first steps again. A check that fails is a finding, not an error.

Exit codes: 0 looked at, 2 configuration, 3 environment.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nmoe import checkpoint
from nmoe.checkpoint import CheckpointError, Saved
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.data.loader import validation_windows
from nmoe.data.manifest import DataError, read_manifest, verify
from nmoe.data.overlap import MAX_OVERLAP, find_overlap
from nmoe.data.tokenizer import Tokenizer, open_tokenizer
from nmoe.evaluate import ALONE, load_model
from nmoe.event_log import read_events
from nmoe.events import OutcomeEvent
from nmoe.model import Transformer
from nmoe.naive import is_supported, naive_nats
from nmoe.paths import DataRoot, RunFolder, code_version, data_root
from nmoe.retrain import retrain
from nmoe.validate import validate

# Nats a token. fp32 differs by the order of sums; bf16 rounds where batches are cut differently.
REEVAL_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-3}
# Of one token's log-probability, computed twice in the same shapes.
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
# Of the mean over tokens, computed in other shapes: one token's logit of 16 may round by .06, and a
# token near a tie may go to another expert.
MEAN_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
SLICE_WINDOWS = 4
NUM_PROBES = 8
# Larger training sets are compared by themselves: `python -m nmoe.data.cli verify --against`.
MAX_OVERLAP_TOKENS = 1 << 28

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: `id` begins with its rung."""

    id: str
    verdict: Verdict
    reason: str


@dataclass(slots=True, kw_only=True)
class Findings:
    """All checks and the numbers behind them; None is what was not measured."""

    checks: list[Check] = field(default_factory=list)
    reeval_loss: float | None = None
    reeval_abs_diff: float | None = None
    naive_abs_diff: float | None = None
    overlap_share: float | None = None
    replay_steps: int | None = None
    replay_max_abs_diff: float | None = None

    def add(self, check_id: str, holds: bool | None, reason: str) -> None:
        """One more check; None is skipped."""
        verdict: Verdict = "skip" if holds is None else "pass" if holds else "fail"
        self.checks.append(Check(id=check_id, verdict=verdict, reason=reason))


def examine(
    folder: RunFolder, root: DataRoot, *, level: int, steps: int, max_overlap: float = MAX_OVERLAP
) -> Findings:
    """Climb the rungs V2 to `level`; raises ConfigError for a folder without a usable plan."""
    plan, findings = read_plan(folder.plan), Findings()
    is_whole, reason = _data(plan, root)
    findings.add("V2.data", is_whole, reason)
    if not is_whole:
        return findings
    findings.overlap_share = _overlap(plan, root, findings, at_most=max_overlap)
    saved = _target(folder, findings)
    if saved is not None:
        tokenizer = open_tokenizer(plan.data.tokenizer)
        windows_WS = validation_windows(
            root.dataset(plan.data.data_path) / "val",
            seq_len=plan.train.seq_len,
            max_windows=plan.validation.windows,
        )
        try:
            model = load_model(plan, saved, vocab_size=tokenizer.vocab_size)
        except CheckpointError as error:
            findings.add("V2.checkpoint", False, str(error))
        else:
            _reevaluate(plan, saved, model, tokenizer, windows_WS, findings)
            if level >= 3:
                probe(model, windows_WS, dtype=plan.dtype, findings=findings)
            del model
    if level >= 4:
        _replay(plan, folder, root, findings, steps=steps)
    return findings


def _data(plan: Plan, root: DataRoot) -> tuple[bool, str]:
    """Whether the validation shards, which the loss rests on, have the hashes of their manifest."""
    try:
        manifest = verify(root.dataset(plan.data.data_path) / "val")
    except DataError as error:
        return False, str(error)
    return True, f"{len(manifest.shards)} validation shards have their hashes"


def _overlap(plan: Plan, root: DataRoot, findings: Findings, *, at_most: float) -> float | None:
    """The largest share of validation text that a source holds; None when it was not looked for."""
    dataset = root.dataset(plan.data.data_path)
    flow = plan.flow
    sources = [root.below(each.path) for each in flow.sources] if flow else [dataset / "train"]
    try:
        tokens = sum(read_manifest(source).total_tokens for source in sources)
        if tokens > MAX_OVERLAP_TOKENS:
            way = "Run: python -m nmoe.data.cli verify TRAIN --against VAL"
            findings.add("V2.overlap", None, f"{tokens:,} training tokens are many. {way}")
            return None
        for source in sources:
            verify(source)
        share = max(find_overlap(source, dataset / "val").share for source in sources)
    except (DataError, OSError) as error:
        findings.add("V2.overlap", False, str(error))
        return None
    reason = (
        f"{share:.3%} of the validation tokens are in the training text,"
        f" expected at most {at_most:.1%}"
    )
    findings.add("V2.overlap", share <= at_most, reason)
    return share


def _target(folder: RunFolder, findings: Findings) -> Saved | None:
    """The checkpoint of the passing validation, when it is the one that the outcome tells of."""
    found = checkpoint.find(folder.checkpoints, kind="target")
    outcome = last_outcome(folder)
    if not found or outcome is None:
        findings.add("V2.checkpoint", None, "the run has no checkpoint of a passing validation")
        return None
    try:
        saved = Saved(path=found[-1], manifest=checkpoint.read_manifest(found[-1]))
    except CheckpointError as error:
        findings.add("V2.checkpoint", False, str(error))
        return None
    progress = saved.manifest.progress
    holds = (progress.step, progress.loss) == (outcome.step, outcome.loss)
    findings.add(
        "V2.checkpoint",
        holds,
        f"{saved.path.name}: step {progress.step}, loss {progress.loss};"
        f" the run ended at step {outcome.step} with {outcome.loss}",
    )
    return saved


def last_outcome(folder: RunFolder) -> OutcomeEvent | None:
    """How the last attempt ended, as the trainer said it."""
    events = [record.event for record in read_events(folder.train)]
    return next((e for e in reversed(events) if isinstance(e, OutcomeEvent)), None)


def _reevaluate(
    plan: Plan,
    saved: Saved,
    model: Transformer,
    tokenizer: Tokenizer,
    windows_WS: np.ndarray,
    findings: Findings,
) -> None:
    """The loss of the checkpoint over the whole validation set, and the long way on a slice."""
    device, dtype = model.head.weight.device, plan.dtype
    batch = plan.train.micro_batch
    lengths_V = tokenizer.byte_lengths()
    found = validate(model, windows_WS, lengths_V, world=ALONE, batch=batch, device=device)
    recorded, tolerance = saved.manifest.progress.loss, REEVAL_TOLERANCE.get(dtype, 0.0)
    findings.reeval_loss = found.loss if math.isfinite(found.loss) else None
    if recorded is None:
        findings.add("V2.reeval", False, "the checkpoint names no loss")
        return
    difference = abs(found.loss - recorded)
    findings.reeval_abs_diff = difference if math.isfinite(difference) else None
    findings.add(
        "V2.reeval",
        difference <= tolerance,
        f"{found.loss:.6f} over {found.tokens:,} tokens, recorded {recorded:.6f},"
        f" difference {difference:.2g}, expected at most {tolerance:g}",
    )
    if not is_supported(plan):
        findings.add("V2.naive", None, "its attention or activation is not written out")
        return
    windows_BN = torch.from_numpy(windows_WS[:SLICE_WINDOWS].astype(np.int64))
    model.eval()
    with torch.no_grad():
        _, nats_T, _ = model.nats(windows_BN.to(device))
    weights = checkpoint.load_weights(saved)
    naive_BS = naive_nats(plan, weights, windows_BN, vocab_size=model.vocab_size)
    difference = abs(nats_T.double().mean().item() - naive_BS.double().mean().item())
    findings.naive_abs_diff = difference if math.isfinite(difference) else None
    tolerance = MEAN_TOLERANCE.get(dtype, 0.0)
    findings.add(
        "V2.naive",
        difference <= tolerance,
        f"{len(windows_BN)} windows in plain fp32 differ by {difference:.2g},"
        f" expected at most {tolerance:g}",
    )


@torch.no_grad()
def probe(model: Transformer, windows_WS: np.ndarray, *, dtype: str, findings: Findings) -> None:
    """Rung V3 on a few validation windows: later tokens, normalisation, company in the batch."""
    model.eval()
    device = model.head.weight.device
    at_most, on_average = PROBE_TOLERANCE.get(dtype, 0.0), MEAN_TOLERANCE.get(dtype, 0.0)
    windows_BN = torch.from_numpy(windows_WS[:SLICE_WINDOWS].astype(np.int64)).to(device)
    before_BSV = _log_probabilities(model, windows_BN[:, :-1])
    moved = max(
        _moved_by_later(model, windows_BN[:, :-1], before_BSV, position)
        for position in _positions(windows_BN.shape[1] - 1)
    )
    findings.add(
        "V3.causality",
        moved <= at_most,
        f"other tokens behind a position move its prediction by {moved:.2g} nats,"
        f" expected at most {at_most:g}",
    )
    _, nats_T, _ = model.nats(windows_BN)
    told_BS = -before_BSV.gather(-1, windows_BN[:, 1:, None]).squeeze(-1)
    apart = (nats_T.view_as(told_BS).double() - told_BS).abs().mean().item()
    findings.add(
        "V3.normalisation",
        apart <= on_average,
        f"the loss differs from -log of a distribution over {model.vocab_size} tokens that sums"
        f" to one by {apart:.2g} nats a token, expected at most {on_average:g}",
    )
    alone_T = torch.cat([model.nats(window_N[None])[1] for window_N in windows_BN])
    apart = (alone_T.double() - nats_T.double()).abs().mean().item()
    findings.add(
        "V3.batch",
        apart <= on_average,
        f"a window alone and among {len(windows_BN)} differ by {apart:.2g} nats a token,"
        f" expected at most {on_average:g}",
    )


def _moved_by_later(
    model: Transformer, tokens_BS: Tensor, before_BSV: Tensor, position: int
) -> float:
    """How far predictions up to `position` move when every later token is another one."""
    changed_BS = tokens_BS.clone()
    later_BS = changed_BS[:, position + 1 :]
    changed_BS[:, position + 1 :] = (later_BS * 31 + 17) % model.vocab_size
    after_BSV = _log_probabilities(model, changed_BS[:, :])
    upto = slice(0, position + 1)
    return (after_BSV[:, upto] - before_BSV[:, upto]).abs().max().item()


def _positions(length: int) -> list[int]:
    """Positions to probe: spread over the window, the last but one included."""
    spread = np.linspace(0, max(0, length - 2), NUM_PROBES).astype(int)
    return sorted(set(spread.tolist()))


def _log_probabilities(model: Transformer, tokens_BS: Tensor) -> Tensor:
    """log p of every token at every position, [B, S, V] in fp64."""
    batch, seq = tokens_BS.shape
    rows_N = torch.arange(batch).repeat_interleave(seq)
    cols_N = torch.arange(seq).repeat(batch)
    logits_NV = model.logits_at(tokens_BS, rows_N, cols_N).double()
    return torch.log_softmax(logits_NV, -1).view(batch, seq, -1)


def _replay(
    plan: Plan, folder: RunFolder, root: DataRoot, findings: Findings, *, steps: int
) -> None:
    """Train the first steps again from the recorded seed, on one rank, and compare the losses."""
    code = code_version()
    is_same = code.commit is not None and code.commit == plan.digests.commit
    is_clean = code.is_dirty is False and plan.digests.is_dirty is False
    findings.add(
        "V4.code",
        True if is_same and is_clean else None,
        f"replayed with commit {code.commit}{'' if code.is_dirty is False else ', changed'},"
        f" recorded {plan.digests.commit}{'' if plan.digests.is_dirty is False else ', changed'}",
    )
    found = retrain(plan, folder, root, steps=steps)
    findings.replay_steps, findings.replay_max_abs_diff = found.steps, found.worst
    findings.add("V4.replay", found.holds, found.reason)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the process; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nmoe.verify")
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument("--level", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps to replay")
    parser.add_argument("--max-overlap", type=float, default=MAX_OVERLAP, metavar="S")
    args = parser.parse_args(argv)
    folder = RunFolder(root=args.run.absolute())
    try:
        plan = read_plan(folder.plan)
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise OSError(f"{plan.run_id} was trained on a GPU and torch sees none.")
        findings = examine(
            folder,
            data_root(),
            level=args.level,
            steps=args.steps,
            max_overlap=args.max_overlap,
        )
    except ConfigError as error:
        return _fail(error, code=2)
    except (DataError, OSError) as error:
        return _fail(error, code=3)
    sys.stdout.write(json.dumps(asdict(findings), allow_nan=False) + "\n")
    return 0


def _fail(problem: object, *, code: int) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
