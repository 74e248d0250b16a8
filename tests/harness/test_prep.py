"""`n prep eval`: the bundle from a server, a mirror or a file; whole, recorded, or not there."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import bundle, doctor, hardware, pins, prep
from harness import plan as planner
from harness.errors import DataError, UsageError
from nmoe.eval.tasks import read_tasks
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT
from tests.harness.file_server import serve

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
FILES = {
    "core.yaml": "icl_tasks:\n- label: x\n  dataset_uri: a/x.jsonl\n",
    "eval_meta_data.csv": "Eval Task,Random baseline\nx,25\n",
    "eval_data/a/x.jsonl": '{"query": "1 + 1 =", "choices": ["2", "3"], "gold": 0}\n',
}
CUSTOM = "custom (core.yaml, eval_meta_data.csv, eval_data/a/x.jsonl)"
# Unpacks the first file, says so, and waits for the end.
HANGING = """
import sys
from pathlib import Path
from harness import bundle
from nmoe.paths import data_root

for step in bundle.install(data_root(), archive=Path(sys.argv[1])):
    print("unpacking", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(data_dir):
    return DataRoot(path=data_dir, reason="a test")


@pytest.fixture
def folder(root):
    return root.bundle("eval_bundle")


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "eval_bundle.zip")


@pytest.fixture
def official(archive, monkeypatch):
    """The archive, with the pins that belong to it."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    for module in (bundle, pins):
        monkeypatch.setattr(module, "ARCHIVE_PIN", digest)
    lists = {name: hashlib.sha256(FILES[name].encode()).hexdigest() for name in pins.PINS}
    monkeypatch.setattr(bundle, "PINS", lists)
    return archive


def write_archive(path: Path, files=FILES, top="eval_bundle/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, text in files.items():
            out.writestr(top + name, text)
    return path


def plan_for(root):
    detection = hardware.detect(fake=SCENARIOS / "h100x8.json")
    return planner.resolve(preset="super", detection=detection, root=root)


def child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole(folder):
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    beside = {path.name for path in folder.parent.iterdir()}
    assert beside == {"eval_bundle", ".eval_bundle.lock"}


def test_bundle_comes_from_a_mirror_and_is_official(official, root, folder, capsys):
    with serve(official.read_bytes()) as server:
        server.cuts = [100]
        assert prep.main(["--mirror", f"{server.url}/files/", "--json"]) == 0
    assert server.asked[0] == ("/files/eval_bundle.zip", None)
    assert server.asked[1] == ("/files/eval_bundle.zip", "bytes=100-")
    assert_whole(folder)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["job"] for line in lines if line["done"] == line["total"]] == [
        "eval_bundle/download",
        "eval_bundle/unpack",
    ]
    record = pins.read_record(folder)
    assert record is not None
    assert (record.status, record.source) == ("official", f"{server.url}/files/eval_bundle.zip")
    assert record.files["core.yaml"] == (
        len(FILES["core.yaml"]),
        hashlib.sha256(FILES["core.yaml"].encode()).hexdigest(),
    )
    assert bundle.problems(plan_for(root), root) == ()
    assert bundle.prep_commands(plan_for(root), root) == ()
    assert bundle.status(root) == "official"


def test_whole_bundle_is_left_as_it_is(official, folder, capsys):
    assert prep.main(["--from", str(official)]) == 0
    before = folder.stat().st_ino
    assert prep.main(["--mirror", "http://127.0.0.1:9"]) == 0  # nothing is asked
    assert folder.stat().st_ino == before
    assert "official" in capsys.readouterr().err


def test_archive_of_another_hash_is_refused_from_the_network(archive, folder, capsys):
    with serve(archive.read_bytes()) as server:
        assert prep.main(["--mirror", server.url]) == 4
    assert f"expected {pins.ARCHIVE_PIN[:12]}" in capsys.readouterr().err
    assert not folder.exists()


def test_archive_that_was_put_in_place_is_used_and_kept(official, root, folder):
    folder.parent.mkdir(parents=True)
    placed = folder.with_name("eval_bundle.zip")
    shutil.copy(official, placed)
    assert prep.main(["--mirror", "http://127.0.0.1:9"]) == 0
    assert bundle.status(root) == "official"
    assert placed.exists()


def test_archive_of_another_hash_that_was_put_in_place_is_refused(archive, folder, capsys):
    folder.parent.mkdir(parents=True)
    placed = folder.with_name("eval_bundle.zip")
    shutil.copy(archive, placed)
    assert prep.main([]) == 4
    assert f"n prep eval --from {placed}" in capsys.readouterr().err
    assert placed.exists()
    assert not folder.exists()


@pytest.mark.parametrize("top", ["", "eval_bundle/", "./some name/"])
def test_other_bundle_is_custom_and_names_what_differs(root, folder, tmp_path, top):
    assert prep.main(["--from", str(write_archive(tmp_path / "mine.zip", top=top))]) == 0
    assert_whole(folder)
    assert bundle.status(root) == CUSTOM
    (problem,) = bundle.problems(plan_for(root), root)
    assert not problem.is_blocking
    assert CUSTOM in problem.what
    checks = doctor.examine(hardware.detect(fake=SCENARIOS / "none.json"), root)
    assert ("note", CUSTOM) in [
        (check.verdict, check.value) for check in checks if check.name == "eval bundle"
    ]


def test_named_archive_replaces_the_bundle_that_is_there(archive, folder, tmp_path):
    assert prep.main(["--from", str(archive)]) == 0
    other = FILES | {"eval_data/a/x.jsonl": '{"query": "new"}\n'}
    assert prep.main(["--from", str(write_archive(tmp_path / "other.zip", other))]) == 0
    assert "new" in (folder / "eval_data" / "a" / "x.jsonl").read_text()
    assert {path.name for path in folder.parent.iterdir()} == {"eval_bundle", ".eval_bundle.lock"}


def test_bundle_that_lost_bytes_is_no_bundle(archive, root, folder):
    assert prep.main(["--from", str(archive)]) == 0
    (folder / "eval_data" / "a" / "x.jsonl").write_text("{}")
    assert bundle.status(root) == "not whole"
    (problem,) = bundle.problems(plan_for(root), root)
    assert problem.is_blocking


def test_bundle_changed_after_it_was_unpacked_is_not_official(official, root, folder):
    assert prep.main(["--from", str(official)]) == 0
    rows = folder / "eval_data" / "a" / "x.jsonl"
    rows.write_text(rows.read_text().replace('"gold": 0', '"gold": 1'))
    (problem,) = bundle.problems(plan_for(root), root)
    assert problem.is_blocking
    assert f"{rows} is not the official one" in problem.what


def test_bundle_unpacked_by_hand_is_scored_and_never_official(official, root, folder):
    with zipfile.ZipFile(official) as opened:
        opened.extractall(folder.parent)
    (problem,) = bundle.problems(plan_for(root), root)
    assert not problem.is_blocking
    assert "unpacked by hand: scored, never official" in problem.what


@pytest.mark.parametrize("flags", [["--mirror", "http://127.0.0.1:9"], ["--from"]])
def test_disk_without_room_is_refused_before_anything_is_written(
    official, folder, monkeypatch, capsys, flags
):
    usage = shutil.disk_usage(official.parent)._replace(free=bundle.SPARE_BYTES)
    monkeypatch.setattr(bundle.shutil, "disk_usage", lambda path: usage)
    given = [*flags, str(official)] if flags == ["--from"] else flags
    assert prep.main(given) == 3
    problem = capsys.readouterr().err
    assert "no room for the eval bundle" in problem
    assert "got 16 MiB free, expected" in problem
    assert "DATA_DIR" in problem
    assert [path.name for path in folder.parent.iterdir()] == [".eval_bundle.lock"]


@pytest.mark.parametrize("lost", FILES)
def test_archive_without_a_part_of_the_bundle_is_refused(lost, folder, tmp_path, capsys):
    files = {name: text for name, text in FILES.items() if name != lost}
    assert prep.main(["--from", str(write_archive(tmp_path / "mine.zip", files))]) == 4
    assert f"{lost} is missing" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == [".eval_bundle.lock"]


def test_archive_that_leaves_its_folder_changes_nothing(folder, tmp_path, capsys):
    evil = write_archive(tmp_path / "evil.zip", FILES | {"../../../evil": "x"})
    assert prep.main(["--from", str(evil)]) == 4
    assert "no path inside a folder" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == [".eval_bundle.lock"]
    assert not list(folder.parent.parent.rglob("evil"))


def test_folder_with_other_files_is_never_replaced(archive, folder, capsys):
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    assert prep.main(["--from", str(archive)]) == 4
    assert "other files" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "mine"


def test_missing_file_and_odd_mirror_are_refused(root, tmp_path):
    with pytest.raises(DataError, match="no file"):
        list(bundle.install(root, archive=tmp_path / "absent.zip"))
    with pytest.raises(UsageError, match="expected http"):
        list(bundle.install(root, mirror="file:///etc"))


def test_killed_unpacking_leaves_no_bundle_and_the_next_one_is_whole(archive, root, folder):
    killed = child("-c", HANGING, str(archive))
    assert killed.stdout is not None
    assert killed.stdout.readline() == "unpacking\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert folder.with_name(".eval_bundle.new").exists()
    assert not folder.exists()
    assert bundle.status(root) == "not fetched"
    assert prep.main(["--from", str(archive)]) == 0
    assert_whole(folder)


def test_bundle_returns_when_its_replacement_was_killed_between_two_renames(archive, root, folder):
    assert prep.main(["--from", str(archive)]) == 0
    folder.rename(folder.with_name(".eval_bundle.old"))
    assert prep.main(["--mirror", "http://127.0.0.1:9"]) == 0
    assert_whole(folder)


def test_many_at_once_make_one_whole_bundle(archive, folder):
    command = ("-m", "harness.prep", "--from", str(archive), "--json")
    children = [child(*command) for _ in range(3)]
    for each in children:
        _, errors = each.communicate(timeout=60)
        assert each.returncode == 0, errors
    assert_whole(folder)


def test_command_says_what_is_missing_when_there_is_no_network(folder):
    command = [sys.executable, "-m", "harness.cli", "prep", "eval", "--mirror"]
    done = subprocess.run([*command, "http://127.0.0.1:9"], capture_output=True, text=True)
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot download http://127.0.0.1:9/eval_bundle.zip")
    assert str(folder.with_name("eval_bundle.zip")) in last
    assert "Traceback" not in done.stderr


def test_command_writes_the_bundle_of_pocket_where_it_is_told(tmp_path):
    command = [sys.executable, "-m", "harness.cli", "prep", "eval", "--output"]
    done = subprocess.run([*command, tmp_path / "mini"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mini" / "core.yaml").exists()


def test_disk_that_refuses_is_an_error_of_the_machine(archive, data_dir, capsys):
    (data_dir / "eval").write_text("in the way")
    assert prep.main(["--from", str(archive)]) == 3
    assert "DATA_DIR" in capsys.readouterr().err


def test_real_bundle_differs_from_the_official_one_only_in_hellaswag(real_data, root, folder):
    archive = real_data / "eval_bundle.tar.xz"
    if not archive.exists():
        pytest.skip(f"the real CORE bundle is absent: no {archive}")
    assert prep.main(["--from", str(archive)]) == 0
    hellaswag = "eval_data/language_understanding/hellaswag.jsonl"
    assert bundle.status(root) == f"custom ({hellaswag})"
    assert len(read_tasks(folder)) == 22
