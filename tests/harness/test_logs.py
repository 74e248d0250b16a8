"""Logs of a run: from the end, followed, bounded, whatever the bytes."""

import os

import pytest

from harness import logs
from harness.logs import FIRST_BYTES, MAX_LINES, MAX_WIDTH, LogReader, level
from nmoe.paths import RunFolder


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(root=tmp_path)
    folder.logs.mkdir()
    return folder


def write(folder, text, name="rank0"):
    with folder.log(name).open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def texts(log):
    return [line.text for line in log.lines]


def drain(reader):
    before = None
    while (found := reader.read()) != before:
        before = found
    return found


def test_lines_are_followed_and_a_torn_one_waits(folder):
    write(folder, "one\ntwo\nthr")
    reader = LogReader(folder)
    assert texts(reader.read()[0]) == ["one", "two"]

    write(folder, "ee\nfour\n")

    (log,) = reader.read()
    assert texts(log) == ["one", "two", "three", "four"]
    assert [line.number for line in log.lines] == [0, 1, 2, 3]
    assert not log.is_cut


def test_nothing_new_is_the_same_object(folder):
    write(folder, "one\n")
    reader = LogReader(folder)

    assert reader.read()[0] is reader.read()[0]


def test_large_file_is_read_from_its_end(folder):
    write(folder, "".join(f"line {i:06}\n" for i in range(200_000)))
    reader = LogReader(folder)
    (log,) = reader.read()

    assert log.is_cut
    assert log.lines[-1].text == "line 199999"
    assert len(log.lines) == MAX_LINES
    assert sum(len(text) + 1 for text in texts(log)) <= FIRST_BYTES


def test_memory_is_bounded_whatever_is_appended(folder):
    reader = LogReader(folder)
    for batch in range(20):
        write(folder, "".join(f"{batch} {i}\n" for i in range(1000)))
        reader.read()
    write(folder, b"x" * 1_000_000)
    (log,) = drain(reader)

    assert len(log.lines) == MAX_LINES
    assert max(len(text) for text in texts(log)) <= MAX_WIDTH
    assert reader._files["rank0"]._rest == b"" or len(reader._files["rank0"]._rest) <= 4 * MAX_WIDTH


@pytest.mark.parametrize("is_replaced", [True, False])
def test_file_that_was_replaced_or_cut_is_read_again(folder, is_replaced):
    write(folder, "old\n" * 100)
    reader = LogReader(folder)
    reader.read()
    if is_replaced:
        os.unlink(folder.log("rank0"))
        write(folder, "other\n", "rank9")  # takes the inode
    folder.log("rank0").write_text("new\n")

    found = {log.name: log for log in reader.read()}

    assert texts(found["rank0"]) == ["new"]


def test_ranks_come_by_number_behind_the_others(folder):
    for name in ("rank10", "rank2", "supervisor", "prep"):
        write(folder, "x\n", name)

    names = [log.name for log in LogReader(folder).read()]
    assert names == ["prep", "supervisor", "rank2", "rank10"]


def test_no_folder_is_no_logs_and_one_that_appears_is_seen(tmp_path):
    folder = RunFolder(root=tmp_path)
    reader = LogReader(folder)
    assert reader.read() == ()

    folder.logs.mkdir()
    write(folder, "x\n")
    assert texts(reader.read()[0]) == ["x"]


def test_any_bytes_are_text_and_a_progress_bar_is_its_last_state(folder):
    write(folder, b"\xff\xfe\x00bad\n 10%\r 50%\r100%\nplain\r\n\n")

    assert texts(LogReader(folder).read()[0]) == ["\ufffd\ufffd\x00bad", "100%", "plain", ""]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Traceback (most recent call last):", "error"),
        ("torch.OutOfMemoryError: CUDA out of memory", "error"),
        ("step 10 FAILED", "error"),
        ("killed by signal 9", "error"),
        ("UserWarning: something", "warning"),
        ("[W] retrying in 5 s", "warning"),
        ("error: 0.01 of bf16 against fp64", "error"),
        ("step 10: loss 5.4, terror and unfailing", "info"),
        ("", "info"),
    ],
)
def test_level_is_how_a_line_sounds(text, found):
    assert level(text) == found


def test_errors_are_counted(folder):
    write(folder, "fine\nRuntimeError: no\nwarning: hot\n")

    assert logs.LogReader(folder).read()[0].num_errors == 1
