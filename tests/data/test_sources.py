"""Sources: the same documents in the same order every time, and input that cannot be read."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmoe.data.documents import START, Source
from nmoe.data.manifest import DataError
from nmoe.data.sources import Remote, StdlibSource, open_source
from nmoe.data.stdlib import stdlib_files


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A made-up standard library with everything that must be left out."""
    root = tmp_path / "python3"
    files = {f"module_{i}.py": f"x = {i}\n" for i in range(60)}
    files |= {
        "package/inner.py": "y = 1\n",
        "empty.py": "",
        "test/test_x.py": "left out",
        "unittest/test/a.py": "left out",
        "site-packages/numpy/a.py": "left out",
        "idlelib/a.py": "left out",
        "config-3.11-x86_64/python-config.py": "left out",
        "_sysconfigdata__linux.py": "left out",
        "encodings/cp1.py": "left out",
        "readme.txt": "left out",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "latin1.py").write_bytes(b"# caf\xe9\n")
    (root / "sitelink.py").symlink_to(root / "module_0.py")
    return root


def test_stdlib_takes_every_source_once_and_leaves_out_the_rest(library: Path) -> None:
    both = [
        text for part in ("train", "val") for text in texts(StdlibSource.open(part, root=library))
    ]

    assert sorted(both) == sorted([f"x = {i}\n" for i in range(60)] + ["y = 1\n"])


def test_stdlib_order_is_that_of_the_paths_and_not_of_the_file_system(
    library: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(library.glob("module_*.py"), reverse=True):
        (other / path.name).write_text(path.read_text())

    kept = [name for name in stdlib_files(library, "train") if name.startswith("module_")]

    assert stdlib_files(other, "train") == kept
    assert kept != sorted(kept)


def test_stdlib_revision_changes_when_one_file_does(library: Path) -> None:
    before = StdlibSource.open("train", root=library)
    name = stdlib_files(library, "train")[0]
    (library / name).write_text("changed = True\n")
    after = StdlibSource.open("train", root=library)

    assert before.facts["files_sha256"] != after.facts["files_sha256"]
    assert before.facts["python"] == after.facts["python"]


def test_stdlib_of_this_python_is_split_into_disjoint_parts() -> None:
    train, val = texts(open_source("stdlib", ["train"])), texts(open_source("stdlib", ["val"]))

    assert not set(train) & set(val)
    total = sum(map(len, train + val))
    assert 4e6 < total < 12e6
    assert 0.02 < sum(map(len, val)) / total < 0.10


def test_stdlib_is_refused_when_no_sources_are_installed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sources are not installed"):
        StdlibSource.open("train", root=tmp_path)


def test_stdlib_is_refused_when_the_part_is_unknown() -> None:
    with pytest.raises(DataError, match="expected train or val"):
        open_source("stdlib", ["test"])


def write_all(folder: Path, rows: list[str]) -> dict[str, Path]:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n\n" for row in rows))
    pq.write_table(pa.table({"id": list(range(len(rows))), "text": rows}), folder / "a.parquet")
    (folder / "txt").mkdir()
    for i, row in enumerate(rows):
        (folder / "txt" / f"{i:03d}.txt").write_text(row, newline="")
    return {
        "jsonl": folder / "a.jsonl",
        "parquet": folder / "a.parquet",
        "text": folder / "txt",
    }


def test_local_sources_yield_the_same_texts_in_order(tmp_path: Path) -> None:
    rows = ["one", "zwei\r\n", "drei \u2028 [/bold]", "<|endoftext|>", *map(str, range(300))]
    paths = write_all(tmp_path, rows)

    for kind, path in paths.items():
        source = open_source(kind, [str(path)])
        documents = list(source.documents())
        assert [document.text for document in documents] == rows
        positions = [document.place.position for document in documents]
        assert positions == sorted(positions)
        assert 0 < positions[-1] <= source.total_bytes


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    paths = [str(tmp_path / "b.txt"), str(tmp_path / "a.txt")]

    source = open_source("text", paths)

    assert texts(source) == ["b", "a"]
    assert source.revision != open_source("text", paths[::-1]).revision


def test_parquet_null_is_an_empty_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")

    assert texts(open_source("parquet", [str(tmp_path / "a.parquet")])) == ["a", ""]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("jsonl", b'{"text": "a"}\n{"text": ', r"a:2 is not JSON"),
        ("jsonl", b'{"body": "a"}\n', r"a:1 has no text.*--text-key"),
        ("jsonl", b"[1]\n", r"a:1 has no text"),
        ("jsonl", b'{"text": 3}\n', r"a:1 has no text: got int"),
        ("jsonl", b"\xff\xfe\n", r"a:1 is not JSON"),
        ("text", b"caf\xe9", r"not UTF-8"),
        ("parquet", b"no parquet at all", r"as parquet"),
        ("parquet", b"", r"as parquet"),
    ],
)
def test_local_source_is_refused_when_its_file_is_broken(
    tmp_path: Path, kind: str, content: bytes, message: str
) -> None:
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(DataError, match=message):
        texts(open_source(kind, [str(tmp_path / "a")]))


def test_parquet_names_its_columns_when_the_asked_one_is_absent(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"no column 'text': got body, id.*--text-key"):
        texts(open_source("parquet", [str(tmp_path / "a.parquet")]))


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_local_source_is_refused_when_nothing_is_there(tmp_path: Path, kind: str) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="no input"):
            open_source(kind, [str(path)])


def test_opening_lists_the_known_sources_when_the_name_is_unknown() -> None:
    with pytest.raises(DataError, match="unknown source: got 'hg', expected one of: stdlib"):
        open_source("hg", ["x"])


def test_every_place_leads_to_the_rest_of_local_files(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [f"row {i}" for i in range(600)])
    (tmp_path / "txt" / "150b.txt").write_text("")

    for kind, path in (*paths.items(), ("files", tmp_path)):
        source = open_source(kind, [str(path)])
        documents = list(source.documents())
        for number in (0, 1, 149, 150, 151, len(documents) - 2, len(documents) - 1):
            rest = source.documents(documents[number].place)
            assert [each for each in rest if each.text] == [
                each for each in documents[number + 1 :] if each.text
            ]


def test_files_are_read_each_by_its_suffix(tmp_path: Path) -> None:
    write_all(tmp_path, ["a", "b"])
    (tmp_path / "notes.md").write_text("left out")

    source = open_source("files", [str(tmp_path)])

    assert texts(source) == ["a", "b"] * 3
    with pytest.raises(DataError, match=r"unknown kind of file: got .*notes\.md.*\.parquet"):
        open_source("files", [str(tmp_path / "notes.md")])


def test_inputs_are_the_files_that_were_read(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 5)
    source = open_source("text", [str(tmp_path)])
    second = list(source.documents())[1].place

    assert [Path(name).name for name in source.inputs(second)] == ["a.txt", "b.txt"]
    digest = hashlib.sha256(b"aaaaa").hexdigest()
    assert source.inputs(second)[str(tmp_path / "a.txt")] == digest
    assert source.inputs(START) == {}


def hf(folder: Path, **asked: str) -> Source:
    return open_source("hf", [str(folder)], remote=Remote(folder=folder.parent / "cache", **asked))


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A folder as `datasets` reads it: two splits, one of them of two files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, first in (("train-0", 0), ("train-1", 40), ("test-0", 80)):
        rows = [f"row {first + i}" for i in range(40)]
        pq.write_table(pa.table({"text": rows, "id": list(range(40))}), folder / f"{name}.parquet")
    return folder


def test_datasets_streams_the_split_that_is_named(hf_folder: Path) -> None:
    train, test = hf(hf_folder), hf(hf_folder, split="test")

    assert texts(train) == [f"row {i}" for i in range(80)]
    assert texts(test) == [f"row {i}" for i in range(80, 120)]
    assert train.facts == {"text_key": "text", "split": "train"}
    assert train.revision == test.revision


def test_every_place_leads_to_the_rest_of_a_stream(hf_folder: Path) -> None:
    documents = list(hf(hf_folder).documents())

    for number in (0, 39, 40, 78, 79):
        assert list(hf(hf_folder).documents(documents[number].place)) == documents[number + 1 :]


def test_stream_revision_changes_when_a_file_does(hf_folder: Path) -> None:
    before = hf(hf_folder).revision
    pq.write_table(pa.table({"text": ["other"]}), hf_folder / "train-1.parquet")

    assert hf(hf_folder).revision != before


def test_stream_is_refused_when_split_or_column_is_absent(hf_folder: Path) -> None:
    with pytest.raises(DataError, match="datasets cannot read .*nosuch"):
        texts(hf(hf_folder, split="nosuch"))
    remote = Remote(folder=hf_folder.parent / "cache")
    with pytest.raises(DataError, match="has no column 'body': got .*--text-key"):
        texts(open_source("hf", [str(hf_folder)], text_key="body", remote=remote))
    with pytest.raises(DataError, match="has no text in 'id': got int"):
        texts(open_source("hf", [str(hf_folder)], text_key="id", remote=remote))


def test_stream_of_a_hub_is_refused_at_once_without_a_network(tmp_path: Path) -> None:
    remote = Remote(folder=tmp_path, mirror="http://127.0.0.1:9")

    with pytest.raises(DataError, match=r"cannot reach http://127\.0\.0\.1:9/api/datasets/a/b"):
        open_source("hf", ["a/b"], remote=remote)
