"""Checkpoints: a replicated part, a part per rank, a manifest last, renamed into place when whole.

checkpoints/step_00000500/    replicated.pt  rank_0.pt …  manifest.json    everything to go on
checkpoints/target_00003300/  replicated.pt  rank_0.pt …  manifest.json    weights at the target
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from concurrent import futures
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
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


class Stage(IntEnum):
    """How a rank's job stands; ranks agree by the maximum."""

    READY = 0
    BUSY = 1
    FAILED = 2


class Writer:
    """Writes checkpoints while training goes on, one at a time.

    There are two jobs: every rank writes its files, then rank 0 the manifest. Ranks go from one to
    the other together: `advance` with the stage they agreed on, or `wait`, until one of them
    returns the checkpoint. Both raise OSError on all ranks when one could not write.
    """

    def __init__(self, folder: Path, *, fingerprint: str, world: dist.World, keep: int) -> None:
        """Remove what killed attempts left half written; no rank writes before the first step.

        Of each kind the newest `keep` checkpoints are kept.
        """
        self._folder = folder
        self._fingerprint = fingerprint
        self._world = world
        self._keep = keep
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: futures.Future[dict[str, Any]] | None = None
        self._manifest: Manifest | None = None
        if world.is_main:
            for leftover in folder.glob(".*.tmp"):
                shutil.rmtree(leftover)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is not whole yet; the same on all ranks."""
        return self._job is not None

    @property
    def stage(self) -> Stage:
        """How this rank's job stands."""
        if self._job is None:
            return Stage.READY
        if not self._job.done():
            return Stage.BUSY
        return Stage.READY if self._job.exception() is None else Stage.FAILED

    def start(
        self,
        kind: Kind,
        progress: Progress,
        *,
        replicated: Mapping[str, Any],
        local: Mapping[str, Any],
    ) -> None:
        """Begin to write: `local` on each rank, `replicated` on rank 0.

        Nobody may change the tensors in them before the checkpoint is whole.
        """
        assert self._job is None
        self._manifest = Manifest(
            format=FORMAT,
            kind=kind,
            world=self._world.size,
            fingerprint=self._fingerprint,
            progress=progress,
            files={},
        )
        parts = {f"rank_{self._world.rank}.pt": local}
        if self._world.is_main:
            parts["replicated.pt"] = replicated
        temporary = _temporary(self._path(self._manifest))
        self._job = self._thread.submit(_write_parts, temporary, parts)

    def advance(self, agreed: Stage) -> Saved | None:
        """Go on when no rank is busy; the checkpoint once it is whole."""
        if self._job is None or self._manifest is None or agreed is Stage.BUSY:
            return None
        path = self._path(self._manifest)
        results = dist.gather(_result(self._job))
        errors = [f"rank {i}: {text}" for i, text in enumerate(results) if isinstance(text, str)]
        if errors:
            raise OSError(
                f"checkpoint {path.name} could not be written: {'; '.join(errors)}."
                " Mend that (free space, permissions) and resume the run."
            )
        if self._manifest.files:
            saved = Saved(path=path, manifest=self._manifest)
            self._job = self._manifest = None
            return saved
        files = {name: info for part in results for name, info in part.items()}
        self._manifest = replace(self._manifest, files=dict(sorted(files.items())))
        if self._world.is_main:
            self._job = self._thread.submit(_finish, path, self._manifest, keep=self._keep)
        return None

    def wait(self) -> Saved:
        """The checkpoint at hand once it is whole."""
        assert self._job is not None
        saved = None
        while saved is None:
            futures.wait([self._job])
            agreed = dist.all_reduce(torch.tensor(int(self.stage)), "max")
            saved = self.advance(Stage(int(agreed.item())))
        return saved

    def close(self) -> None:
        """End the thread after the job at hand."""
        self._thread.shutdown()

    def _path(self, manifest: Manifest) -> Path:
        return self._folder / f"{manifest.kind}_{manifest.progress.step:08d}"


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


def write_part(path: Path, content: Mapping[str, Any]) -> FileInfo:
    """Write one file of a checkpoint to disk; raises OSError."""
    with _HashedFile(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # torch ends its archive even on a full disk, and complains of that instead
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
        return FileInfo(bytes=file.tell(), sha256=file.sha256.hexdigest())


class _HashedFile(io.BufferedWriter):
    """A file whose digest comes with the one pass over its bytes, which torch writes in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        return super().write(data)


def _write_parts(temporary: Path, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    temporary.mkdir(parents=True, exist_ok=True)
    return {name: asdict(write_part(temporary / name, part)) for name, part in parts.items()}


def _finish(path: Path, manifest: Manifest, *, keep: int) -> dict[str, Any]:
    """Manifest last, then the rename that makes it a checkpoint; the oldest of its kind go."""
    temporary = _temporary(path)
    write_atomic(temporary / "manifest.json", json.dumps(asdict(manifest), indent=1) + "\n")
    fsync_dir(temporary)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)
    fsync_dir(path.parent)
    for old in find(path.parent, kind=manifest.kind)[:-keep]:
        # half deleted it must not look whole
        shutil.rmtree(old.rename(_temporary(old)))
    return {}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _result(job: futures.Future[dict[str, Any]]) -> dict[str, Any] | str:
    """What a job came to, or why it failed; nothing while it is busy."""
    try:
        return job.result() if job.done() else {}
    except OSError as error:
        return str(error)


def _read(saved: Saved, name: str) -> dict[str, Any]:
    path, info = saved.path / name, saved.manifest.files.get(name)
    if info is None or not path.exists() or file_digest(path) != info["sha256"]:
        raise CheckpointError(
            f"checkpoint file {path} is missing or was changed. Delete the folder"
            f" {saved.path.name} to go on from an older checkpoint."
        )
    return torch.load(path, map_location="cpu", weights_only=True)
