"""Downloads over a real connection to this machine: whole, cut, resumed, refused."""

import hashlib
import random
import socket

import pytest

from harness.download import download
from harness.errors import DataError
from tests.harness.file_server import serve

DATA = random.Random(1).randbytes(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serve(DATA) as told:
        yield told


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.zip"


def part_of(path):
    return path.with_name("file.zip.part")


def fetch(url, path, *, sha256=SHA, max_bytes=1 << 20):
    steps = download(url, path, sha256=sha256, max_bytes=max_bytes, label="job", pause_s=0)
    return list(steps)


def test_file_is_whole_and_its_progress_ends_at_its_size(server, path):
    steps = fetch(f"{server.url}/a/file.zip", path)
    assert path.read_bytes() == DATA
    assert not part_of(path).exists()
    assert (steps[-1].label, steps[-1].done, steps[-1].total) == ("job", len(DATA), len(DATA))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert server.asked == [("/a/file.zip", None)]


def test_download_goes_on_where_the_connection_broke(server, path):
    server.cuts = [300_000, 100_000]
    fetch(server.url, path)
    assert path.read_bytes() == DATA
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=400000-"]


def test_download_goes_on_with_the_part_of_an_earlier_process(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(DATA[:123_456])
    fetch(server.url, path)
    assert path.read_bytes() == DATA
    assert server.asked == [("/", "bytes=123456-")]


def test_whole_part_is_taken_when_nothing_is_left_to_send(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(DATA)
    fetch(server.url, path)
    assert path.read_bytes() == DATA


def test_part_longer_than_the_file_is_thrown_away(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(DATA + b"more")
    fetch(server.url, path)
    assert path.read_bytes() == DATA


def test_download_starts_again_when_the_server_knows_no_ranges(server, path):
    server.has_ranges = False
    server.cuts = [300_000]
    fetch(server.url, path)
    assert path.read_bytes() == DATA
    assert len(server.asked) == 2


def test_download_gives_up_when_the_size_is_never_reached(server, path):
    server.extra_length, server.has_ranges = 5, False
    with pytest.raises(DataError, match="broke after") as raised:
        fetch(server.url, path)
    assert server.url in raised.value.problem
    assert not path.exists()


def test_file_of_another_hash_is_refused_and_not_kept(server, path):
    with pytest.raises(DataError, match=f"got sha256 {SHA[:12]}…, expected 0000"):
        fetch(server.url, path, sha256="0" * 64)
    assert list(path.parent.iterdir()) == []


def test_stale_part_is_refused_once_and_then_forgotten(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="another file"):
        fetch(server.url, path)
    fetch(server.url, path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("extra", [0, 1 << 30])
def test_file_larger_than_allowed_is_refused(server, path, extra):
    server.extra_length = extra
    with pytest.raises(DataError, match="at most 1000"):
        fetch(server.url, path, max_bytes=1000)
    assert not path.exists()


def test_missing_file_is_refused_at_once_with_its_address(server, path):
    server.status = 404
    with pytest.raises(DataError, match="HTTP 404") as raised:
        fetch(f"{server.url}/file.zip", path)
    assert f"{server.url}/file.zip" in raised.value.problem
    assert str(path) in raised.value.fix
    assert f"{path}.part" not in raised.value.fix
    assert len(server.asked) == 1


def test_server_error_is_tried_again_before_it_is_refused(server, path):
    server.status = 503
    with pytest.raises(DataError, match="HTTP 503"):
        fetch(server.url, path)
    assert len(server.asked) > 1


def test_error_names_address_and_place_when_there_is_no_network(path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file.zip"
        with pytest.raises(DataError, match="refused") as raised:
            fetch(url, path)
    assert raised.value.exit_code == 4
    assert url in raised.value.problem
    assert str(path) in raised.value.fix
    assert "n prep eval --from FILE" in raised.value.fix


def test_proxy_of_the_environment_is_used(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fetch("http://files.invalid/file.zip", path)
    assert path.read_bytes() == DATA
    assert server.asked == [("http://files.invalid/file.zip", None)]
