"""Checkpoints: a replicated part, a part per rank, a manifest last, renamed into place when whole.

checkpoints/step_00000500/    replicated.pt  rank_0.pt …  manifest.json    everything to go on
checkpoints/target_00003300/  replicated.pt  rank_0.pt …  manifest.json    weights at the target
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nmoe import dist
from nmoe.paths import file_digest, fsync_dir, write_atomic
from nmoe.schema import build

FORMAT = 1
Kind = Literal["step", "target"]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is: totals since its start, and the passing validation's loss at the target."""

    step: int
    tokens: int
    train_s: float
    wall_s: float
    compile_s: float
    eval_s: float
    checkpoint_s: float
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """Size and sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds; `fingerprint` ties it to the plan's semantic fields and the data."""

    format: int
    kind: Kind
    world: int
    fingerprint: str
    progress: Progress
    files: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A whole checkpoint on disk."""

    path: Path
    manifest: Manifest

    @property
    def bytes(self) -> int:
        return sum(info["bytes"] for info in self.manifest.files.values())


def save(
    folder: Path,
    *,
    kind: Kind,
    progress: Progress,
    fingerprint: str,
    world: dist.World,
    replicated: Mapping[str, Any],
    local: Mapping[str, Any],
    keep: int,
) -> Saved:
    """Write a checkpoint on all ranks; it exists only once every rank has written its part.

    `replicated` is written by rank 0, `local` by each rank. Older checkpoints of the same kind
    beyond the newest `keep` are removed. Raises OSError (disk full) with nothing renamed.
    """
    path = folder / f"{kind}_{progress.step:08d}"
    temporary = folder / f".{path.name}.tmp"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    parts = {f"rank_{world.rank}.pt": local}
    if world.is_main:
        parts["replicated.pt"] = replicated
    written = {name: _write(temporary / name, content) for name, content in parts.items()}
    files = {name: info for part in dist.gather(written) for name, info in part.items()}
    manifest = Manifest(
        format=FORMAT,
        kind=kind,
        world=world.size,
        fingerprint=fingerprint,
        progress=progress,
        files=dict(sorted(files.items())),
    )
    if world.is_main:
        write_atomic(temporary / "manifest.json", json.dumps(asdict(manifest), indent=1) + "\n")
        fsync_dir(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        fsync_dir(folder)
        for old in find(folder, kind=kind)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return Saved(path=path, manifest=manifest)


def find(folder: Path, *, kind: Kind) -> list[Path]:
    """Whole checkpoints of a kind, oldest first."""
    return sorted(path.parent for path in folder.glob(f"{kind}_*/manifest.json"))


def newest(folder: Path) -> Saved | None:
    """The checkpoint to go on from: the one at the target if it stands, else the newest step."""
    for kind in ("target", "step"):
        found = find(folder, kind=kind)
        if found:
            return Saved(path=found[-1], manifest=read_manifest(found[-1]))
    return None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint folder; CheckpointError when it cannot be read."""
    try:
        raw = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return build(Manifest, raw, where=f"{path.name}/manifest.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None


def load(
    saved: Saved, *, fingerprint: str, world: dist.World
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(replicated part, this rank's part); CheckpointError when it does not belong to this run."""
    manifest, path = saved.manifest, saved.path
    if manifest.fingerprint != fingerprint:
        raise CheckpointError(
            f"checkpoint {path.name} was written by another configuration or from other data."
            " Start a new run instead of resuming this one."
        )
    if manifest.world != world.size:
        raise CheckpointError(
            f"checkpoint {path.name}: got {world.size} ranks, expected {manifest.world}."
            " Resume with as many ranks as it was written by."
        )
    return _read(saved, "replicated.pt"), _read(saved, f"rank_{world.rank}.pt")


def load_weights(saved: Saved) -> dict[str, Tensor]:
    """The weights as a single rank holds them: replicated ones, the experts of all ranks in order.

    Raises CheckpointError for a file that is missing or was changed.
    """
    weights = _read(saved, "replicated.pt")["model"]
    parts = [_read(saved, f"rank_{rank}.pt")["model"] for rank in range(saved.manifest.world)]
    return weights | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _write(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    return asdict(FileInfo(bytes=path.stat().st_size, sha256=file_digest(path)))


def _read(saved: Saved, name: str) -> dict[str, Any]:
    path, info = saved.path / name, saved.manifest.files.get(name)
    if info is None or not path.exists() or file_digest(path) != info["sha256"]:
        raise CheckpointError(
            f"checkpoint file {path} is missing or was changed. Delete the folder"
            f" {saved.path.name} to go on from an older checkpoint."
        )
    return torch.load(path, map_location="cpu", weights_only=True)
