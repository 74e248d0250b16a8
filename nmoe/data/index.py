"""`.idx` beside a shard: where each document starts and ends, EOS included.

Layout, little endian: 8 bytes magic, u64 version, u64 number of documents, u64 zero, then one
(start, end) pair of u64 token positions a document, end exclusive.
"""

import struct
from pathlib import Path

import numpy as np

from nmoe.data.manifest import DataError

MAGIC = b"NMOEIDX\0"
VERSION = 1
HEADER = struct.Struct("<8sQQQ")


def encode_index(lengths: list[int]) -> bytes:
    """The file content for consecutive documents of `lengths` tokens each."""
    ends = np.cumsum(np.asarray(lengths, dtype="<u8"), dtype="<u8")
    pairs = np.stack([ends - np.asarray(lengths, dtype="<u8"), ends], axis=1)
    return HEADER.pack(MAGIC, VERSION, len(lengths), 0) + pairs.astype("<u8").tobytes()


def read_index(path: Path, *, tokens: int) -> np.ndarray:
    """Document borders [num_docs, 2] of a shard of `tokens` tokens; DataError when they are not."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Prepare it again.") from None
    if len(raw) < HEADER.size:
        raise DataError(f"broken index {path}: got {len(raw)} bytes, expected a 32-byte header.")
    magic, version, num_docs, _ = HEADER.unpack_from(raw)
    if (magic, version) != (MAGIC, VERSION):
        raise DataError(f"broken index {path}: got magic {magic!r} version {version}.")
    if len(raw) != HEADER.size + 16 * num_docs:
        raise DataError(f"broken index {path}: got {len(raw)} bytes for {num_docs} documents.")
    pairs = np.frombuffer(raw, dtype="<u8", offset=HEADER.size).reshape(num_docs, 2)
    starts, ends = pairs[:, 0], pairs[:, 1]
    is_gapless = num_docs and starts[0] == 0 and np.array_equal(starts[1:], ends[:-1])
    if not is_gapless or ends[-1] != tokens or np.any(starts >= ends):
        raise DataError(f"broken index {path}: the documents do not cover {tokens} tokens.")
    return pairs
