"""Archives: what is in them comes out, and nothing else happens, whatever they say."""

import io
import random
import stat
import tarfile
import zipfile
from contextlib import suppress

import pytest

from harness.archive import Limits, unpack, unpacked_bytes
from harness.errors import DataError

FILES = {"top/a.txt": b"hello\n", "top/deep/b.txt": b"", "c.bin": bytes(range(256)) * 9}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


WRITERS = {
    "zip": write_zip,
    "tar": write_tar,
    "tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def run(archive, folder, **limits):
    return list(unpack(archive, folder, label="job", limits=Limits(**limits) if limits else None))


def found(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(archive, tmp_path, match, **limits):
    """Refused, and nothing stands beside archive and folder, nor in the folder's parents."""
    box = tmp_path / "box"
    box.mkdir()
    with pytest.raises(DataError, match=match):
        run(archive, box / "folder", **limits)
    assert {path.name for path in box.iterdir()} <= {"folder"}
    assert {path.name for path in tmp_path.iterdir()} == {"box", archive.name}
    assert not any(path.is_symlink() for path in box.rglob("*"))


def test_files_come_out_as_they_went_in(write, tmp_path):
    archive = write(tmp_path / "archive", FILES)
    assert unpacked_bytes(archive) == sum(map(len, FILES.values()))
    steps = run(archive, tmp_path / "out" / "folder")
    assert found(tmp_path / "out" / "folder") == FILES
    assert steps[-1].done == steps[-1].total == archive.stat().st_size
    assert all(step.done < step.total for step in steps[:-1])


def test_folders_and_dots_in_names_are_harmless(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as out:
        for name in (".", "./top"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            out.addfile(info)
        info = tarfile.TarInfo("./top/a.txt")
        info.size = 2
        out.addfile(info, io.BytesIO(b"hi"))
    run(archive, tmp_path / "out")
    assert found(tmp_path / "out") == {"top/a.txt": b"hi"}


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "top/../../evil", "/tmp/nmoe-evil", "C:/evil", "c:evil", "..\\evil"),
        *("top\\evil", "..", "a\nb", "a\x1b[2J"),
    ],
)
def test_name_that_leaves_the_folder_is_refused(write, name, tmp_path):
    archive = write(tmp_path / "archive", {"good": b"1", name: b"2"})
    assert_refused(archive, tmp_path, "no path inside a folder")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_link_or_device_in_a_tar_is_refused(kind, tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as out:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc"
        out.addfile(info)
        inner = tarfile.TarInfo("link/passwd")
        inner.size = 1
        out.addfile(inner, io.BytesIO(b"x"))
    assert_refused(archive, tmp_path, "link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_link_or_device_in_a_zip_is_refused(kind, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        info = zipfile.ZipInfo("link")
        info.external_attr = (kind | 0o777) << 16
        out.writestr(info, "/etc/passwd")
    assert_refused(archive, tmp_path, "link or a device")


def test_encrypted_zip_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    assert_refused(archive, tmp_path, "encrypted")


def test_bomb_is_refused_by_its_ratio(write, tmp_path):
    if write is write_tar:
        pytest.skip("a tar without compression cannot grow")
    archive = write(tmp_path / "archive", {"zeros": bytes(20 << 20)})
    assert_refused(archive, tmp_path, "bytes")


def test_archive_is_refused_when_it_holds_too_much(write, tmp_path):
    archive = write(tmp_path / "archive", FILES)
    assert_refused(archive, tmp_path, "more than 2000 bytes", total_bytes=2000)


def test_archive_is_refused_when_it_holds_too_many_files(write, tmp_path):
    archive = write(tmp_path / "archive", FILES)
    assert_refused(archive, tmp_path, "more than 2 files", files=2)


def test_headers_without_files_are_counted_too(tmp_path):
    archive = tmp_path / "a.tar.xz"
    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as out:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * (4 << 20)}
        out.addfile(info)
    assert_refused(archive, tmp_path, "more than", total_bytes=1 << 20)


def test_zip_that_states_too_small_a_size_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a": bytes(100_000)})
    data = bytearray(archive.read_bytes())
    central = data.index(b"PK\1\2")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    assert_refused(archive, tmp_path, "no whole zip or tar")


@pytest.mark.parametrize("second", ["A", "./a", "a/b"])
def test_name_that_comes_twice_is_refused(write, second, tmp_path):
    archive = write(tmp_path / "archive", {"a": b"1", second: b"2"})
    assert_refused(archive, tmp_path, "comes twice|File exists|Not a directory")


def test_name_longer_than_a_disk_can_hold_is_refused(write, tmp_path):
    archive = write(tmp_path / "archive", {"a" * 300: b"1"})
    assert_refused(archive, tmp_path, "too long")


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.9])
def test_archive_is_refused_when_it_is_cut(write, keep, tmp_path):
    archive = write(
        tmp_path / "archive", {f"{i}": random.Random(i).randbytes(5000) for i in range(20)}
    )
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    if write is write_tar and keep == 0.9:
        pytest.skip("the end of a plain tar is padding")
    assert_refused(archive, tmp_path, "no whole zip or tar")


def test_damaged_zip_is_refused_by_its_checksum(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a", b"hello world")
    archive.write_bytes(archive.read_bytes().replace(b"hello world", b"hello w0rld"))
    assert_refused(archive, tmp_path, "no whole zip or tar")


def test_damage_anywhere_is_refused_or_harmless(write, tmp_path):
    """Flipped bytes give other bytes, or a refusal; never another error or another place."""
    archive = write(tmp_path / "archive", FILES)
    data, chance = archive.read_bytes(), random.Random(7)
    box = tmp_path / "box"
    box.mkdir()
    for i in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[chance.randrange(min(len(data), 4096))] = chance.randrange(256)
        archive.write_bytes(damaged)
        with suppress(DataError):
            run(archive, box / f"{i}")
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "box"}
    assert all(path.name.isdecimal() for path in box.iterdir())
    assert not any(path.is_symlink() for path in box.rglob("*"))
