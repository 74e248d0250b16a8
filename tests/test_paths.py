"""The data root, run folders, atomic writes, the commit of the code."""

import platform
import stat
from pathlib import Path

import pytest

from nmoe import paths
from nmoe.paths import DataRoot, code_version, data_root, new_run_id, write_atomic


def test_data_root_is_what_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert data_root() == DataRoot(path=tmp_path, reason="DATA_DIR")
    monkeypatch.setenv("DATA_DIR", "relative")
    assert data_root().path.is_absolute()


def test_data_root_has_a_reason_when_the_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_DIR")
    root = data_root()
    assert root.path in (Path("/data"), Path.home() / ".local" / "share" / "nmoe")
    assert "/data" in root.reason


@pytest.mark.parametrize("run_id", ["", "..", "../x", "a/b", ".hidden", "a\nb", "[/bold]"])
def test_run_id_cannot_leave_the_folder(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="bad run id"):
        DataRoot(path=tmp_path, reason="test").run(run_id)


def test_run_id_is_new_every_time_and_names_a_folder(tmp_path: Path) -> None:
    ids = {new_run_id("pocket") for _ in range(20)}
    assert len(ids) == 20
    root = DataRoot(path=tmp_path, reason="test")
    assert all(root.run(run_id).root.parent == root.runs for run_id in ids)


def test_dataset_folder_knows_the_running_python(tmp_path: Path) -> None:
    folder = DataRoot(path=tmp_path, reason="test").dataset("pocket/python-{python}")
    assert folder == tmp_path / "pocket" / f"python-{platform.python_version()}"
    assert DataRoot(path=tmp_path, reason="test").dataset("/else") == Path("/else")


def test_write_atomic_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "file.json"
    write_atomic(path, "old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


def test_write_atomic_gives_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "x")
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_code_version_names_a_commit_or_admits_that_there_is_none() -> None:
    code = code_version()
    if (paths.REPO_ROOT / ".git").exists():
        assert code.commit is not None
        assert len(code.commit) == 40
        assert isinstance(code.is_dirty, bool)
    else:
        assert code == paths.CodeVersion(commit=None, is_dirty=None)
