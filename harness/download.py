"""Downloads of the harness: one file by its hash, as steps of a named job."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError
from nmoe.data import download as network
from nmoe.data.manifest import DataError as NetworkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one job is; `done` equals `total` when it is finished."""

    label: str
    done: int
    total: int
    unit: str = "bytes"


def download(
    url: str, path: Path, *, sha256: str, max_bytes: int, label: str, pause_s: float = 1.0
) -> Generator[Progress]:
    """Bring `url` to `path`; what came before a cut waits in a .part file beside it.

    `max_bytes` bounds what a server may send. Raises DataError that names the URL when there is no
    network, no such file, or another file than `sha256`; OSError when the disk refuses.
    """
    steps = network.download(url, path, digest=sha256, max_bytes=max_bytes, pause_s=pause_s)
    try:
        for done, total in steps:
            yield Progress(label=label, done=done, total=total)
    except NetworkError as error:
        raise DataError(
            str(error),
            f"Fetch it elsewhere and put it at {path}, use another mirror,"
            " or run: n prep eval --from FILE",
        ) from None
