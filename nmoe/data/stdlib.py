"""Which files of the running Python's standard library are text for `train` and for `val`.

A file's place is the hash of its path: files below VALIDATION_SHARE are `val`, the others `train`.
Both are read in the order of the hashes, so that the start is a fair sample.
"""

import hashlib
from pathlib import Path

# Tests and fixtures, and what distributors split off, patch or leave out; `encodings` and
# `pydoc_data` are generated tables.
EXCLUDED = frozenset(
    {
        "__pycache__",
        "_distutils_system_mod.py",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "macholib",
        "pydoc_data",
        "site-packages",
        "site.py",
        "sitecustomize.py",
        "sysconfig.py",
        "test",
        "tests",
        "tkinter",
        "turtle.py",
        "turtledemo",
        "venv",
    }
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")  # differ from build to build
VALIDATION_SHARE = 0.05


def stdlib_files(root: Path, split: str) -> list[str]:
    """Relative paths of the split's files, in reading order."""
    chosen: list[tuple[float, str]] = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        is_build_specific = relative.parts[0].startswith(EXCLUDED_PREFIXES)
        if is_build_specific or path.is_symlink() or EXCLUDED & set(relative.parts):
            continue
        name = relative.as_posix()
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        if (place < VALIDATION_SHARE) == (split == "val"):
            chosen.append((place, name))
    return [name for _, name in sorted(chosen)]
