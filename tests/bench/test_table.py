"""The table says everything, with rich and without, and marks what regressed."""

import pytest

from bench import table
from bench.rows import regressions
from tests.bench.results import a_machine, a_row

ABSENT = a_row(implementation="Liger", us=None, rate=None, unit="", note="[x] is not installed")


@pytest.fixture(params=["rich", "plain"])
def shown(request, monkeypatch, capsys):
    """What `show` prints for rows."""
    if request.param == "plain":
        monkeypatch.setattr(table, "Console", None)

    def show(rows, slower):
        table.show(rows, slower)
        return capsys.readouterr().out

    return show


def test_table_has_every_figure_and_the_machine(shown):
    out = shown([a_row(plain_error=0.0049), ABSENT], {})
    for text in ("layer forward", "s1", "nmoe", "2,000.0", "400.0 TFLOP/s", "50.0", "2.0e-03"):
        assert text in out
    for text in ("4.9e-03", "NVIDIA H200", "driver 580.1", "torch 2.11.0", "0123456789ab"):
        assert text in out
    assert "[x] is not installed" in out
    assert "REGRESSION" not in out


def test_table_marks_what_regressed(shown):
    old, new = a_row(), a_row(us=3000.0)
    out = shown([new], regressions([old], [new]))
    assert "REGRESSION x1.50" in out
    assert "1 rows" in out


def test_table_of_nothing_says_so(shown):
    assert shown([], {}) == "no rows\n"


def test_title_counts_gpus_and_shows_changes():
    machine = a_machine(gpus=2, commit="0123456789abcdef+changes")
    title = table.title([a_row(machine)])
    assert title.startswith("2 x NVIDIA H200")
    assert "commit 0123456789ab+changes;" in title
