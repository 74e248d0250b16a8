"""Where everything lives: the data root, the run folder, the commit of the code.

The only module that joins paths of a run and the only one that asks git.
"""

import fcntl
import hashlib
import os
import platform
import re
import secrets
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPO_ROOT / "constraints.txt"
BOARD_NAME = "LEADERBOARD.json"
REPO_BOARD = REPO_ROOT / BOARD_NAME
PRESETS = REPO_ROOT / "configs" / "speedrun"
BENCH_RESULTS = REPO_ROOT / "bench" / "results"
LOCK_PATIENCE_S = 1.0
LOCK_RETRY_S = 0.02
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def preset_names() -> tuple[str, ...]:
    """Names of the speedrun presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRoot:
    """The folder that holds runs, data and metrics, and why it was chosen."""

    path: Path
    reason: str

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def repeats(self) -> Path:
        """Folder of the registered sets of repeats."""
        return self.path / "repeats"

    @property
    def experiments(self) -> Path:
        return self.path / "experiments.db"

    @property
    def board(self) -> Path:
        return self.path / BOARD_NAME

    def dataset(self, data_path: str) -> Path:
        """Folder with `train` and `val` inside; `{python}` stands for the running version."""
        return self.below(data_path)

    def below(self, path: str) -> Path:
        """A path that is absolute or below the data root.

        `{python}` stands for the running version, `{stdlib}` for the folder of its library.
        """
        path = path.replace("{python}", platform.python_version())
        return self.path / path.replace("{stdlib}", sysconfig.get_path("stdlib"))

    def bundle(self, name: str) -> Path:
        """Folder of the eval bundle `name`."""
        return self.path / "eval" / name

    @property
    def bench(self) -> Path:
        """Folder of the lock and the log of the bench suite, when a screen started it."""
        return self.path / "bench"

    @property
    def core_cache(self) -> Path:
        """Folder of rendered and encoded CORE tasks; it may be deleted at any time."""
        return self.path / "cache" / "core"

    @property
    def exports(self) -> Path:
        """Folder of what a screen was asked to write."""
        return self.path / "exports"

    def tokenizer(self, file_name: str) -> Path:
        """A vocabulary that was put there by hand."""
        return self.path / "tokenizers" / file_name

    def metrics(self, run_id: str) -> Path:
        """Folder of a run's Parquet parts."""
        return self.path / "metrics" / run_id

    def run(self, run_id: str) -> "RunFolder":
        """The run folder of `run_id`; ValueError when the name could leave the folder."""
        if not RUN_ID.fullmatch(run_id):
            raise ValueError(f"bad run id: got {run_id!r}, expected letters, digits, '.', '_', '-'")
        return RunFolder(root=self.runs / run_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The files of one run, each with exactly one writer."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def supervisor(self) -> Path:
        return self.root / "supervisor.jsonl"

    @property
    def gpus(self) -> Path:
        return self.root / "gpus.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def stop_request(self) -> Path:
        return self.control / "stop.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def core_items(self) -> Path:
        return self.root / "core_items.jsonl"

    @property
    def router(self) -> Path:
        return self.root / "router.f16"

    @property
    def gpu_metrics(self) -> Path:
        return self.root / "gpu.parquet"

    @property
    def note(self) -> Path:
        return self.root / "note.txt"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def metrics(self) -> Path:
        return self.root.parent.parent / "metrics" / self.run_id

    def log(self, name: str) -> Path:
        """The captured output of one process, such as `rank0`."""
        return self.logs / f"{name}.log"


def data_root() -> DataRoot:
    """The data root: $DATA_DIR, else a writable /data, else ~/.local/share/nmoe."""
    named = os.environ.get("DATA_DIR", "")
    if named:
        return DataRoot(path=Path(named).expanduser().absolute(), reason="DATA_DIR")
    shared = Path("/data")
    if shared.is_dir() and os.access(shared, os.W_OK):
        return DataRoot(path=shared, reason="/data is writable")
    return DataRoot(path=Path.home() / ".local" / "share" / "nmoe", reason="no DATA_DIR, no /data")


def new_run_id(preset: str) -> str:
    """A run id that sorts by time: `<preset>-<YYYYMMDD>-<HHMMSS>-<4 hex>`, in UTC."""
    return f"{preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVersion:
    """The commit the code runs from; `commit` is None outside a git checkout."""

    commit: str | None
    is_dirty: bool | None


@cache
def code_version() -> CodeVersion:
    """Commit and dirtiness of this checkout; the scoreboard file does not make it dirty."""
    try:
        commit = _git("rev-parse", "HEAD")
        status = _git("status", "--porcelain", "--", ".", f":(exclude){BOARD_NAME}")
    except (OSError, subprocess.CalledProcessError):
        return CodeVersion(commit=None, is_dirty=None)
    return CodeVersion(commit=commit, is_dirty=bool(status))


def _git(*args: str) -> str:
    command = ["git", "-c", f"safe.directory={REPO_ROOT}", "-C", str(REPO_ROOT), *args]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return out.stdout.strip()


def file_digest(path: Path) -> str:
    """sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def take_lock(path: Path) -> int | None:
    """The descriptor of the lock file `path`, held until it is closed; None when another holds it.

    Whoever asks if a run is alive holds its lock for an instant, so this tries for a second.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
        time.sleep(LOCK_RETRY_S)


def existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone, after whoever holds it; the kernel lets go when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fsync_dir(folder: Path) -> None:
    """Make the renames inside `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
