"""manifest.json: what is read back, what is refused, and what the digest depends on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nmoe.data.manifest import (
    MANIFEST_NAME,
    DataError,
    digest,
    read_manifest,
    verify,
    verify_sizes,
    write_manifest,
)
from tests.data.datasets import write_counting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_counting(tmp_path / "set", [30, 20, 7])


def test_manifest_is_equal_when_read_back(folder: Path) -> None:
    manifest = read_manifest(folder)

    write_manifest(folder, replace(manifest, name="ünï [/bold]", facts={"python": "3.11.7"}))

    assert read_manifest(folder) == replace(
        manifest, name="ünï [/bold]", facts={"python": "3.11.7"}
    )


def test_reading_names_the_command_when_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json is missing.*nmoe.data.cli prep"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0\0", '{"name": 3}', "{}"])
def test_reading_is_refused_when_manifest_is_garbage(folder: Path, text: str) -> None:
    (folder / MANIFEST_NAME).write_text(text)

    with pytest.raises(DataError, match="broken manifest"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_tokens", "57"),
        ("total_tokens", True),
        ("total_tokens", 58),
        ("shards", {}),
        ("shards", []),
        ("shards", [1]),
        ("eos_id", 70_000),
        ("tokenizer", None),
    ],
)
def test_reading_is_refused_when_one_value_is_wrong(folder: Path, key: str, value: object) -> None:
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**raw, key: value}))

    with pytest.raises(DataError, match="broken manifest"):
        read_manifest(folder)


def test_reading_is_refused_when_a_shard_name_leaves_the_folder(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace("shard_00001.npy", "../shard_00001.npy"))

    with pytest.raises(DataError, match="unusable shard"):
        read_manifest(folder)


def test_both_checks_pass_when_dataset_is_whole(folder: Path) -> None:
    seen: list[tuple[int, int]] = []

    assert verify_sizes(folder) == read_manifest(folder)
    manifest = verify(folder, progress=lambda done, total: seen.append((done, total)))

    assert seen[-1] == (manifest.total_bytes, manifest.total_bytes)


def test_both_checks_fail_when_a_shard_is_missing(folder: Path) -> None:
    (folder / "shard_00001.npy").unlink()

    for check in (verify_sizes, verify):
        with pytest.raises(DataError, match=r"missing.*shard_00001\.npy"):
            check(folder)


def test_both_checks_fail_when_a_shard_is_truncated(folder: Path) -> None:
    path = folder / "shard_00002.npy"
    path.write_bytes(path.read_bytes()[:-1])

    for check in (verify_sizes, verify):
        with pytest.raises(DataError, match=r"another size.*shard_00002\.npy"):
            check(folder)


def test_verify_fails_when_one_bit_of_a_shard_is_flipped(folder: Path) -> None:
    path = folder / "shard_00000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    verify_sizes(folder)
    with pytest.raises(DataError, match=r"corrupt.*shard_00000\.npy"):
        verify(folder)


def test_digest_depends_on_tokens_and_not_on_the_name(tmp_path: Path) -> None:
    one = read_manifest(write_counting(tmp_path / "one", [30, 20]))
    other = read_manifest(write_counting(tmp_path / "other", [30, 21]))

    assert digest(one) == digest(replace(one, name="renamed", revision="2"))
    assert digest(one) != digest(other)
    assert digest(one) != digest(replace(one, tokenizer="byte"))
