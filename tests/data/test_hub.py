"""Datasets of a hub: files by commit, one ahead, removed once read, resumed where they were cut."""

import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmoe.data import hub as hub_module
from nmoe.data.download import DownloadError
from nmoe.data.folder import known_revision
from nmoe.data.manifest import DataError, Manifest, read_manifest
from nmoe.data.prep import prepare
from nmoe.data.sources import HubSource, Remote, open_source
from nmoe.data.tokenizer import open_tokenizer
from nmoe.paths import REPO_ROOT
from tests.data.datasets import contents
from tests.data.hub_server import Hub, serve

REPO = "someone/some-texts"
BYTE = open_tokenizer("byte")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=7)
    return buffer.getvalue()


def texts_of(number: int) -> list[str]:
    return [f"file {number} row {row} " * (1 + row % 5) for row in range(20)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {f"data/{number:02d}.parquet": parquet(texts_of(number)) for number in range(5)}
    with serve(Hub(REPO, {"README.md": b"# texts", **files})) as served:
        yield served


def open_hub(hub: Hub, folder: Path, **asked) -> HubSource:
    remote = Remote(folder=folder, mirror=hub.url, **asked)
    source = open_source("hub_parquet", [REPO], remote=remote)
    assert isinstance(source, HubSource)
    return source


def prep(hub: Hub, output: Path, progress=None, **options) -> Manifest:
    source = open_hub(hub, output / "downloads")
    options = {"shard_tokens": 1500} | options
    return prepare(source, BYTE, output=output, name="set", progress=progress, **options)


def test_documents_are_those_of_all_parquet_files_in_name_order(hub, tmp_path):
    hub.files = dict(reversed(hub.files.items()))

    source = open_hub(hub, tmp_path)

    wanted = [text for number in range(5) for text in texts_of(number)]
    documents = list(source.documents())
    assert [each.text for each in documents] == wanted
    assert documents[-1].place.position == source.total_bytes
    assert list(tmp_path.rglob("*.parquet")) == []
    assert hub.fetched == [f"{number:02d}.parquet" for number in range(5)]


def test_every_place_leads_to_the_rest_without_the_files_before_it(hub, tmp_path):
    source = open_hub(hub, tmp_path)
    documents = list(source.documents())

    for number in (0, 18, 19, 20, 55, 99):
        hub.asked.clear()
        rest = list(source.documents(documents[number].place))
        assert rest == documents[number + 1 :]
        assert len(hub.fetched) == 5 - (number + 1) // 20


def test_two_files_lie_on_the_disk_at_most_and_none_in_the_end(hub, tmp_path):
    seen = [
        len([path for path in tmp_path.rglob("*") if path.is_file()])
        for _ in open_hub(hub, tmp_path).documents()
    ]

    assert set(seen) <= {1, 2}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_kept_files_are_read_again_without_fetching_them(hub, tmp_path):
    first = list(open_hub(hub, tmp_path, keeps_files=True).documents())
    (tmp_path / "data" / "03.parquet").write_bytes(b"damaged")
    hub.asked.clear()

    assert list(open_hub(hub, tmp_path, keeps_files=True).documents()) == first
    assert hub.fetched == ["03.parquet"]


def test_patterns_choose_files_and_are_recorded(hub, tmp_path):
    source = open_hub(hub, tmp_path, files=("data/0[1-3]*",), exclude=("*/02.*",))

    assert [file.path for file in source.files] == ["data/01.parquet", "data/03.parquet"]
    assert source.facts["files"] == "data/0[1-3]*"
    assert source.facts["exclude"] == "*/02.*"
    with pytest.raises(DataError, match="no such files in .*someone/some-texts.* expected x"):
        _ = open_hub(hub, tmp_path, files=("x",)).files


def test_manifest_records_commit_and_digest_of_every_file_that_was_read(hub, tmp_path):
    hub.small = {"data/01.parquet"}

    manifest = prep(hub, tmp_path, max_tokens=900)

    assert (manifest.source, manifest.revision) == (f"hub_parquet:{REPO}", hub.commit)
    assert list(manifest.inputs) == ["data/00.parquet", "data/01.parquet"]
    rows = [hub._row(name) for name in manifest.inputs]
    assert list(manifest.inputs.values()) == [rows[0]["lfs"]["oid"], rows[1]["oid"]]
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".npy"} == {
        *("manifest.json", "shard_00000.idx"),
    }


def test_connection_that_breaks_is_gone_on_with(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "PAUSE_S", 0.0)
    hub.cuts = [100, 200, 0, 50]

    prep(hub, tmp_path / "cut")
    whole = prep(hub, tmp_path / "whole")

    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert whole.num_docs == 100
    ranges = [asked for path, asked in hub.asked if path.endswith("00.parquet")]
    assert ranges[:2] == [None, "bytes=100-"]


def _prep_and_die(hub: Hub, output: Path, call: int, options: dict[str, int]) -> None:
    calls = iter(range(call, -1, -1))

    def kill(*_: object) -> None:
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    prep(hub, output, progress=kill, **options)


@pytest.mark.parametrize("call", [0, 1, 47, 99])
@pytest.mark.parametrize("options", [{}, {"num_shards": 3}, {"max_tokens": 100_000}])
def test_second_try_gives_identical_bytes_when_the_first_was_killed(hub, tmp_path, call, options):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = FORK.Process(target=_prep_and_die, args=(hub, killed, call, options))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert known_revision(killed, f"hub_parquet:{REPO}") == hub.commit

    prep(hub, killed, **options)
    prep(hub, whole, **options)

    assert contents(killed) == contents(whole)


def test_second_try_fetches_nothing_that_is_in_whole_shards(hub, tmp_path):
    child = FORK.Process(target=_prep_and_die, args=(hub, tmp_path, 95, {}))
    child.start()
    child.join()
    hub.asked.clear()

    prep(hub, tmp_path)

    assert "00.parquet" not in hub.fetched
    assert len(hub.fetched) <= 2


def test_whole_dataset_of_a_known_commit_is_found_without_a_network(hub, tmp_path):
    whole = prep(hub, tmp_path)
    remote = Remote(folder=tmp_path, mirror="http://127.0.0.1:9", revision=hub.commit)

    source = open_source("hub_parquet", [REPO], remote=remote)

    assert prepare(source, BYTE, output=tmp_path, name="set", shard_tokens=1500) == whole


def test_no_network_is_told_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{closed.getsockname()[1]}"
        remote = Remote(folder=tmp_path, mirror=mirror)
        with pytest.raises(DownloadError, match=f"cannot reach {mirror}/api/datasets/{REPO}"):
            open_source("hub_parquet", [REPO], remote=remote)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody"])
def test_dataset_that_the_hub_does_not_have_is_refused(hub, tmp_path, name):
    with pytest.raises(DataError, match=f"{name}/revision/main: HTTP 404"):
        open_source("hub_parquet", [name], remote=Remote(folder=tmp_path, mirror=hub.url))


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "https://huggingface.co/a/b", "/etc"])
def test_name_that_is_none_of_a_dataset_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="expected OWNER/NAME"):
        open_source("hub_parquet", [name], remote=Remote(folder=tmp_path))


@pytest.mark.parametrize("mirror", ["example.com", "file:///etc", ""])
def test_mirror_that_is_no_web_address_is_refused(tmp_path, mirror):
    with pytest.raises(DataError, match="expected http://"):
        open_source("hub_parquet", [REPO], remote=Remote(folder=tmp_path, mirror=mirror))


def test_hub_that_sends_something_else_is_refused(hub, tmp_path):
    for body in (b"<html>", b"[]", b'{"sha": "x"}'):
        hub.others = {"/api/datasets/a/b/revision/main": body}
        with pytest.raises(DataError, match="expected"):
            open_source("hub_parquet", ["a/b"], remote=Remote(folder=tmp_path, mirror=hub.url))
    for rows in ({"a": 1}, [{"type": "file", "path": "../x", "oid": "0", "size": 1}], [1]):
        hub.others = {f"/api/datasets/a/b/tree/{'0' * 40}": json.dumps(rows).encode()}
        remote = Remote(folder=tmp_path, mirror=hub.url, revision="0" * 40)
        with pytest.raises(DataError, match="got no list of files"):
            _ = open_source("hub_parquet", ["a/b"], remote=remote).total_bytes


def test_file_of_another_digest_is_refused(hub, tmp_path):
    source = open_hub(hub, tmp_path)
    _ = source.files
    name = "data/00.parquet"
    hub.files[name] = hub.files[name][:-1] + b"?"

    with pytest.raises(DownloadError, match="is another file: got sha256"):
        list(source.documents())


def test_variable_of_the_hub_libraries_names_a_mirror(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")

    source = open_source("hub_parquet", [REPO], remote=Remote(folder=tmp_path))

    assert source.revision == hub.commit


def test_proxy_of_the_environment_is_used(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", hub.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    through = "http://hub.invalid"
    hub.others = {
        f"{through}/api/datasets/{REPO}/revision/main": json.dumps({"sha": hub.commit}).encode()
    }

    remote = Remote(folder=tmp_path, mirror=through)

    assert open_source("hub_parquet", [REPO], remote=remote).revision == hub.commit


def hf_prep(hub: Hub, output: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own: the library reads the mirror and its cache's place once."""
    command = [sys.executable, "-m", "nmoe.data.cli", "prep", "--source", "hf", "--dataset", REPO]
    return subprocess.run(
        [*command, "--mirror", hub.url, "--output", str(output)],
        cwd=REPO_ROOT,
        env=os.environ | {"HF_HOME": str(output.parent / "hf_home")},
        capture_output=True,
        text=True,
    )


def test_datasets_streams_from_the_mirror_at_the_recorded_commit(hub, tmp_path):
    del hub.files["README.md"]

    done = hf_prep(hub, tmp_path / "set")

    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "set")
    assert (manifest.source, manifest.revision) == (f"hf:{REPO}", hub.commit)
    assert manifest.num_docs == 100
    assert {path.suffix for path in (tmp_path / "set").iterdir()} == {".npy", ".idx", ".json"}


def test_datasets_that_cannot_go_on_ends_with_one_line(hub, tmp_path):
    del hub.files["README.md"]
    hub.lost = {"data/01.parquet"}

    done = hf_prep(hub, tmp_path / "set")

    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"error: datasets cannot read {REPO}: ")
    assert "Traceback" not in done.stderr
