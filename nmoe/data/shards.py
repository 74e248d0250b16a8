"""Shards: one-dimensional `.npy` files of tokens, and the stream they form together."""

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from nmoe.data.index import encode_index
from nmoe.data.manifest import DataError, Manifest, Shard, verify_sizes
from nmoe.paths import file_digest


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits, else uint32; little endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def shard_name(number: int) -> str:
    """File name of the shard with this number; names sort as numbers do."""
    return f"shard_{number:05d}.npy"


class ShardWriter:
    """One shard and its index, written document by document, each file whole or not at all."""

    def __init__(self, folder: Path, number: int, *, dtype: np.dtype) -> None:
        """Open the temporary file; `close` or `discard` ends it."""
        self.tokens = 0
        self._path = folder / shard_name(number)
        self._temporary = _temporary(self._path)
        self._dtype = dtype
        self._lengths: list[int] = []
        self._file = self._temporary.open("wb")
        self._file.write(_header(0, dtype))

    def append(self, tokens: np.ndarray) -> None:
        """One document, EOS included."""
        self._file.write(tokens.astype(self._dtype, copy=False).data.cast("B"))
        self._lengths.append(len(tokens))
        self.tokens += len(tokens)

    def close(self) -> Shard:
        """Make both files whole and durable."""
        self._file.seek(0)
        self._file.write(_header(self.tokens, self._dtype))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = file_digest(self._temporary)
        os.replace(self._temporary, self._path)
        _write_whole(self._path.with_suffix(".idx"), encode_index(self._lengths))
        size = self._path.stat().st_size
        return Shard(name=self._path.name, tokens=self.tokens, bytes=size, sha256=sha256)

    def discard(self) -> None:
        """Remove what is not whole; does nothing behind `close`."""
        with suppress(OSError):  # what is buffered may not fit on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def _header(tokens: int, dtype: np.dtype) -> bytes:
    """The .npy header of a one-dimensional array; 128 bytes for any number of tokens."""
    header = io.BytesIO()
    layout = {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(header, layout)
    return header.getvalue()


def open_shard(path: Path, *, tokens: int) -> np.ndarray:
    """The tokens of a shard, memory-mapped; DataError when the file is not such a shard."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read shard {path}: {error}. Prepare it again.") from None
    if mapped.ndim != 1 or mapped.dtype not in (np.uint16, np.uint32) or len(mapped) != tokens:
        raise DataError(
            f"shard {path}: got {mapped.dtype} {mapped.shape}, expected uint16 or uint32"
            f" ({tokens},). Prepare the dataset again."
        )
    return np.asarray(mapped)  # the plain view: slicing a np.memmap costs several times more


class TokenStream:
    """All shards of a dataset as one sequence, in sorted name order; nothing is copied up front."""

    def __init__(self, folder: Path) -> None:
        """Open every shard; DataError when the dataset is not whole."""
        self.folder = folder
        self.manifest: Manifest = verify_sizes(folder)
        shards = sorted(self.manifest.shards, key=lambda shard: shard.name)
        self._arrays = [open_shard(folder / item.name, tokens=item.tokens) for item in shards]
        self._starts = np.cumsum([0] + [item.tokens for item in shards])

    def __len__(self) -> int:
        return self.manifest.total_tokens

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out` with the tokens from `start` on; a range may span any number of shards."""
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(out):
            first = start + filled - int(self._starts[number])
            part = self._arrays[number][first : first + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            number += 1

    def windows(self, numbers: np.ndarray, *, seq_len: int) -> np.ndarray:
        """The windows with these numbers, int64 [len(numbers), seq_len + 1]; window i starts at
        i * (seq_len + 1). DataError when a token is outside the vocabulary.
        """
        width = seq_len + 1
        rows = np.empty((len(numbers), width), dtype=np.int64)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            self.read_into(row, number * width)
        if len(rows) and int(rows.max()) >= self.manifest.vocab_size:
            raise DataError(
                f"corrupt data in {self.folder}: got token {int(rows.max())}, expected less than"
                f" {self.manifest.vocab_size}. Run: python -m nmoe.data.cli verify {self.folder}"
            )
        return rows


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _write_whole(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
