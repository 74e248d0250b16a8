"""Two scored models item by item: the counts, McNemar's p, what is refused and why."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.compare import compare, mcnemar, read_baselines
from harness.errors import RunError, UsageError
from harness.format import probability
from harness.tables import comparison_lines
from nmoe.events import CoreTaskEvent
from nmoe.paths import DataRoot
from tests.harness.finished_run import write_run


def write(path: Path, **answers: str) -> Path:
    """An item file: a letter an item, `+` right and `-` wrong, the task as the keyword."""
    lines = [
        {"task": task, "index": index, "gold": 1, "chosen": 0, "correct": mark == "+"}
        | {"losses": [1.0, None], "prompt": f"{task}-{index}"}
        for task, marks in answers.items()
        for index, mark in enumerate(marks)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def report(items: Path, baselines: dict[str, float]) -> Path:
    """The report of a score beside its items, as far as it is read; returns the items."""
    tasks = [{"label": task, "baseline": baseline} for task, baseline in baselines.items()]
    name = items.name.removesuffix(".items.jsonl")
    items.with_name(f"{name}.json").write_text(json.dumps({"tasks": tasks}))
    return items


def change(path: Path, **fields: Any) -> None:
    """Change fields of the first item."""
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | fields), *others]) + "\n")


def test_comparison_counts_what_only_one_has_right(tmp_path: Path) -> None:
    a = write(tmp_path / "a", copa="++-+", piqa="+++++---")
    b = write(tmp_path / "b", copa="+-++", piqa="-----+--")
    copa, piqa = (result := compare(a, b)).tasks
    assert (copa.task, copa.n, copa.acc_a, copa.acc_b) == ("copa", 4, 0.75, 0.75)
    assert (copa.only_a, copa.only_b, copa.p) == (1, 1, 1.0)
    assert (piqa.n, piqa.acc_a, piqa.acc_b, piqa.only_a, piqa.only_b) == (8, 0.625, 0.125, 5, 1)
    assert piqa.p == 2 * (1 + 6) / 2**6
    total = result.total
    assert (total.n, total.acc_a, total.only_a, total.only_b) == (12, 8 / 12, 6, 2)
    assert total.p == 2 * (1 + 8 + 28) / 2**8


def test_comparison_is_mirrored_when_the_runs_change_places(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", copa="+++-+"), write(tmp_path / "b", copa="--+-+")
    there, back = compare(a, b).total, compare(b, a).total
    assert (there.only_a, there.only_b, there.p) == (back.only_b, back.only_a, back.p)


def test_comparison_does_not_need_the_same_order(tmp_path: Path) -> None:
    a = write(tmp_path / "a", copa="+-", piqa="-+")
    b = write(tmp_path / "b", piqa="-+", copa="+-")
    b.write_text("\n".join(reversed(b.read_text().splitlines())) + "\n")
    assert (compare(a, b).total.only_a, compare(a, b).total.only_b) == (0, 0)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30])
def test_mcnemar_is_the_two_sided_binomial(n: int) -> None:
    chance = [math.comb(n, k) / 2**n for k in range(n + 1)]
    for k in range(n + 1):
        # as uneven as this split or more, on either side
        expected = math.fsum(p for j, p in enumerate(chance) if abs(2 * j - n) >= abs(2 * k - n))
        assert mcnemar(k, n - k) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_holds_for_a_whole_suite() -> None:
    assert mcnemar(15_000, 15_000) == 1.0
    # the normal approximation with continuity correction: z = 299 / sqrt(30000)
    expected = math.erfc(299 / math.sqrt(30_000) / math.sqrt(2))
    assert mcnemar(15_150, 14_850) == pytest.approx(expected, rel=1e-3)
    assert mcnemar(20_000, 0) == 0.0


def test_probability_is_never_drawn_as_zero() -> None:
    assert [probability(p) for p in (1.0, 0.03125, 0.0001, 1e-9, 0.0)] == [
        *("1.0000", "0.0312", "0.0001", "< 0.0001", "< 0.0001")
    ]


def test_lines_show_every_task_the_total_and_what_is_not_known(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", copa="+-", piqa="++"), write(tmp_path / "b", copa="-+", piqa="-+")
    lines = comparison_lines(compare(a, b))
    assert [line.split()[0] for line in lines] == [
        *("A", "B", "TASK", "copa", "piqa", "total", "note:")
    ]
    assert lines[4].split() == ["piqa", "2", "1.0000", "0.5000", "1", "0", "1.0000"]
    assert "no difference of CORE: the baselines of copa, piqa are not known" in lines[-1]


def test_core_difference_is_that_of_the_scores_and_its_interval_holds_it(tmp_path: Path) -> None:
    baselines = {"copa": 0.5, "piqa": 0.25}
    a = report(write(tmp_path / "a.items.jsonl", copa="++-+" * 10, piqa="+-" * 20), baselines)
    b = write(tmp_path / "b", copa="++-+" * 10, piqa="++" * 20)
    core = compare(a, b).core
    assert core is not None
    assert core.a == pytest.approx(((0.75 - 0.5) / 0.5 + (0.5 - 0.25) / 0.75) / 2)
    assert core.b == pytest.approx(((0.75 - 0.5) / 0.5 + 1) / 2)
    assert core.difference == pytest.approx(core.b - core.a)
    low, high = core.ci95
    # only piqa's items differ: half of 40 are drawn, give or take twice sqrt(0.25 / 40)
    assert low == pytest.approx(core.difference - 1.96 * 0.0791 / 0.75 / 2, abs=0.01)
    assert high == pytest.approx(core.difference + 1.96 * 0.0791 / 0.75 / 2, abs=0.01)
    back = compare(b, a).core
    assert back is not None
    assert back.difference == pytest.approx(-core.difference)
    assert back.ci95 == pytest.approx((-high, -low), abs=0.01)
    assert compare(a, b).core == core
    line = next(x for x in comparison_lines(compare(a, b)) if x.startswith("CORE"))
    assert "B - A 0.3333 [" in line


def test_core_difference_is_nothing_when_the_answers_are_the_same(tmp_path: Path) -> None:
    a = report(write(tmp_path / "a.items.jsonl", copa="++-+"), {"copa": 0.5})
    core = compare(a, a).core
    assert core is not None
    assert (core.difference, core.ci95) == (0.0, (0.0, 0.0))


def test_baselines_come_from_the_run_of_the_items(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    tasks = {CoreTaskEvent: {"baseline": 0.5}}
    folder = write_run(root, changes=tasks)  # of the last task only
    write(folder.core_items, copy="+-", count="++", close="-+")
    assert read_baselines(folder.core_items) == {"close": 0.5}
    comparison = compare(folder.core_items, folder.core_items)
    assert comparison.core is None
    assert "copy, count are not known" in comparison.notes[-1]


def test_comparison_is_refused_when_the_baselines_differ(tmp_path: Path) -> None:
    a = report(write(tmp_path / "a.items.jsonl", copa="+-"), {"copa": 0.5})
    b = report(write(tmp_path / "b.items.jsonl", copa="+-"), {"copa": 0.25})
    with pytest.raises(UsageError, match=r"baselines of 'copa' differ: got 0.5 and 0.25"):
        compare(a, b)


def test_report_that_cannot_be_read_tells_no_baselines(tmp_path: Path) -> None:
    items = write(tmp_path / "a.items.jsonl", copa="+-")
    for content in ("", "[]", "{}", '{"tasks": [1]}', '{"tasks": [{"label": "copa"}]}'):
        (tmp_path / "a.json").write_text(content)
        assert read_baselines(items) == {}


def test_comparison_is_refused_when_the_prompts_differ(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", copa="+-"), write(tmp_path / "b", copa="+-")
    change(b, prompt="other")
    with pytest.raises(UsageError, match="item 0 of 'copa' was asked in other words"):
        compare(a, b)


def test_comparison_says_so_when_a_file_has_no_prompt_hashes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", copa="+-"), write(tmp_path / "b", copa="+-")
    change(b, prompt=None)
    notes = compare(a, b).notes
    assert [f"{b} has no prompt hashes" in note for note in notes] == [True, False]
    lines = [json.loads(line) for line in b.read_text().splitlines()]
    for line in lines:
        del line["prompt"]
    b.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(b, a).notes[0] == notes[0]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"copa": "+-"}, "the tasks differ: only in the first piqa, only in the second none"),
        ({"copa": "+-+", "piqa": "+"}, "the items of 'copa' differ: got 2 and 3"),
    ],
)
def test_comparison_is_refused_when_the_items_differ(
    tmp_path: Path, answers: dict[str, str], reason: str
) -> None:
    a, b = write(tmp_path / "a", copa="+-", piqa="+"), write(tmp_path / "b", **answers)
    with pytest.raises(UsageError, match=reason):
        compare(a, b)


@pytest.mark.parametrize("fields", [{"gold": 0}, {"gold": None}, {"losses": [1.0, 2.0, 3.0]}])
def test_comparison_is_refused_when_a_question_differs(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    a, b = write(tmp_path / "a", copa="+-"), write(tmp_path / "b", copa="+-")
    change(b, **fields)
    with pytest.raises(UsageError, match="item 0 of 'copa' is another question"):
        compare(a, b)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no scored items"),
        ("", "holds no items"),
        ('{"task": "copa"', "line 1 is not a scored item"),
        ("[]\n", "line 1 is not a scored item"),
        ('{"task": "copa", "index": 0}\n', "line 1 is not a scored item"),
        ("\udcff", "cannot be read"),
    ],
)
def test_comparison_is_refused_when_a_file_cannot_be_read(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    a, b = write(tmp_path / "a", copa="+-"), tmp_path / "b"
    if content is not None:
        b.write_text(content, errors="surrogateescape")
    with pytest.raises(RunError, match=reason):
        compare(a, b)


def test_comparison_is_refused_when_an_item_stands_twice(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", copa="+-"), write(tmp_path / "b", copa="+-")
    b.write_text(b.read_text() * 2)
    with pytest.raises(RunError, match="line 3: item 0 of 'copa' stands twice"):
        compare(a, b)
