"""The report of a run: its numbers, runs in every state, hostile text, a real browser."""

import asyncio
import re
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser

import aiohttp
import pytest

from harness import curves, export, leaderboard, report, score, svg
from harness import format as fmt
from harness import verify as ladder
from harness.board_file import amend
from harness.entry import Check, Verification
from nmoe import events as ev
from tests.browser import Browser
from tests.harness.finished_run import make_plan, write_run
from tests.tui import boards, races
from tests.tui import recordings as rec
from tests.tui.screen import held


def planned(root):
    """A run of which there is nothing but its plan."""
    recording = rec.Recording(root)
    recording.plan()
    return recording.folder


SECTIONS = ("Result", "Curves", "CORE", "Clocks", "Energy", "Environment and plan", "Verification")
STATES = {
    "done": (lambda root: races.done(root).folder, "target reached"),
    "diverged": (lambda root: races.diverged(root).folder, "diverged"),
    "resumed": (lambda root: races.resumed(root).folder, "interrupted"),
    "failed": (lambda root: races.failed(root).folder, "failed"),
    "preparing": (rec.preparing, "interrupted"),
    "training": (lambda root: rec.training(root).folder, "stalled"),
    "scoring": (lambda root: rec.scoring_core(root).folder, "core-eval, still running"),
    "gpus": (rec.with_gpus, "interrupted"),
    "planned": (planned, "not started"),
}
ALIVE = ("training", "scoring")


class Page(HTMLParser):
    """The text of a page by section, its tags and their attributes."""

    VOID = ("meta", "link", "line", "rect", "circle", "path")

    def __init__(self, text):
        super().__init__()
        self.tags, self.sections, self._open, self._name = [], {}, [], ""
        self.feed(text)
        self.close()
        assert self._open == [], "a tag is not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or f"</{tag}>" in self.get_starttag_text():
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._open and self._open[-1] in self.VOID and self._open[-1] != tag:
            self._open.pop()
        if tag in self.VOID and (not self._open or self._open[-1] != tag):
            return
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self._name = data
        if "style" not in self._open:
            self.sections[self._name] = self.sections.get(self._name, "") + data + "\n"

    @property
    def text(self):
        return "\n".join(self.sections.values())


@pytest.fixture
def root(data_dir):
    return rec.data_root(data_dir)


def account_of(name, root):
    return export.gather(str(name), root, repo_board=root.path / "none.json")


def page_of(name, root):
    return Page(report.html(account_of(name, root)))


@pytest.mark.parametrize("state", STATES)
def test_run_in_any_state_has_a_report(root, state):
    make, said = STATES[state]
    folder = make(root)
    with held(folder) if state in ALIVE else nullcontext():
        page = page_of(folder.run_id, root)
    assert said in page.sections[""]
    assert folder.run_id in page.sections[""]
    assert set(SECTIONS) <= set(page.sections)


def test_report_shows_the_numbers_of_the_run(root):
    boards.write_board(root, count=2)
    (standing,) = leaderboard.standings(leaderboard.load(root.board))
    entry = standing.rows[0].entry
    found = account_of(entry.result.run_id, root)
    page, state = Page(report.html(found)), found.state
    result = page.sections["Result"]
    for expected in (
        f"{fmt.fixed(entry.result.loss, decimals=5)} at step {fmt.count(entry.result.step)}",
        fmt.count(entry.result.tokens),
        fmt.exact_seconds(entry.result.train_s),
        fmt.exact_seconds(state.outcome.wall_s),
        f"{standing.rows[0].rank} of 2 among {entry.cohort.label} (provisional, {root.board})",
        "<= 1.7 nats a token",
    ):
        assert expected in result
    for task in state.core_tasks:
        assert task.name in page.sections["CORE"]
        assert fmt.core(task.centered) in page.sections["CORE"]
    assert fmt.core(state.core.score) in page.sections["CORE"]
    assert state.plan.digests.config in page.sections["Environment and plan"]
    assert "optim.lr_dense" in page.sections["Environment and plan"]


def test_clocks_add_up_to_the_wall_clock(root):
    folder = write_run(root, train_s=60.0)
    text = page_of(folder.run_id, root).sections["Clocks"]
    names = ("training", "validation", "compiling", "checkpoints", "other")
    lines = text.splitlines()
    parts = [float(lines[lines.index(name) + 1]) for name in names]
    assert parts == [60.0, 5.0, 1.0, 1.0, 3.0]
    assert float(lines[lines.index("wall clock") + 1]) == sum(parts) == 70.0
    assert "optimizer" in text
    assert "It leaves out: data preparation" in text


def test_energy_is_told_only_where_it_was_measured(root):
    without = page_of(write_run(root).run_id, root)
    assert "Not measured" in without.sections["Energy"]
    assert "power of all GPUs" not in without.sections["Curves"]
    race = races.Race(root, races.RUN_ID)
    race.begin()
    race.gpus(*(ev.GpuEvent(index=i, energy_j=0.0, power_w=900.0) for i in range(8)))
    race.train(*race.steps(20), seconds=1.0)
    race.gpus(
        *(ev.GpuEvent(index=i, energy_j=45_000.0, power_w=950.0) for i in range(8)),
        ev.EnergyEvent(step=20, tokens=10 * races.BATCH, joules=52_428.8),
    )
    race.train(
        ev.ValEvent(step=20, loss=3.2, bpb=1.0, tokens=10_485_760, train_s=10.4, seconds=1.0),
        races._outcome("done", 20, train_s=10.4),
    )
    page = page_of(race.folder.run_id, root)
    text = page.sections["Energy"]
    assert "mean power of a GPU\n925 W" in text
    assert "power of all GPUs, W" in page.sections["Curves"]
    joules = 8 * 45_000.0
    assert f"joules to the target\n{fmt.count(joules)} J (0.100 kWh)" in text
    assert f"to the target\n{fmt.fixed(joules / (20 * races.BATCH) * 1e3, decimals=2)} mJ" in text
    assert "training alone\n10.00 mJ" in text
    assert "temperature" not in text


def test_routers_are_told_of_a_mixture_only(root):
    routers = page_of(races.done(root).folder.run_id, root).sections["Routers"]
    assert "255 of 256" in routers
    assert "Routers" not in page_of(write_run(root).run_id, root).sections


def test_verification_is_that_of_the_entry_or_its_command(root):
    boards.write_board(root, count=1)
    run_id = leaderboard.load(root.board).entries[0].result.run_id
    before = page_of(run_id, root).sections["Verification"]
    assert "not verified" in before
    assert f"n verify {run_id}" in before
    made = Verification(
        checks=(Check(id="V1.tokens", verdict="pass", reason="all <of> them"),),
        reeval_loss=1.25, verifier_machine="Some CPU", utc="2026-01-02T00:00:00+00:00",
    )  # fmt: skip
    amend(root.board, run_id, lambda entry: ladder.judged(entry, made))
    after = page_of(run_id, root).sections["Verification"]
    assert all(text in after for text in ("V1.tokens", "all <of> them", "1.250000", "Some CPU"))
    assert "n verify" not in after
    stopped = rec.failed(root, "pocket-20260101-000000-0000").run_id
    assert f"n verify {stopped}" in page_of(stopped, root).sections["Verification"]


def test_failed_run_tells_why_and_interrupted_one_the_way_on(root):
    failed = page_of(races.failed(root).folder.run_id, root).sections["What happened"]
    assert "exit code 5, rank 3" in failed
    assert "lower train.micro_batch" in failed
    assert "CUDA out of [/bold] memory" in failed
    run_id = races.resumed(root, "super-20260101-000000-0000").folder.run_id
    page = page_of(run_id, root)
    assert f"n resume {run_id}" in page.sections["Result"]
    assert "Resumed after step 1,000." in page.sections["What happened"]


EVIL = '</td><script>alert(1)</script><img src=http://evil onerror=alert(2)>" \x1b[31m\u202e'


def test_hostile_text_stays_text_and_nothing_is_fetched(root):
    plan = make_plan()
    hardware = replace(plan.hardware, cpu=EVIL)
    plan = replace(plan, preset=EVIL, choice=EVIL, hardware=hardware, versions={EVIL: EVIL})
    changes = {ev.CoreTaskEvent: {"name": EVIL}, ev.OutcomeEvent: {"message": EVIL}}
    folder = write_run(root, plan=plan, changes=changes)
    leaderboard.append(root.board, leaderboard.make_entry(score.compute(folder, root)))
    text = report.html(account_of(folder.run_id, root))
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "form", "base", "a"}
    assert [attrs["href"] for tag, attrs in page.tags if "href" in attrs] == ["data:,"]
    assert not any("src" in attrs or "srcset" in attrs for _, attrs in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "url(" not in text
    assert "@import" not in text
    assert all(char.isprintable() or char == "\n" for char in text)
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_report_of_the_same_files_is_the_same_but_for_its_time(root):
    name = races.diverged(root).folder.run_id
    first, second = (re.sub(r"on [-\d]+ [:\d]+ UTC", "", report.html(account_of(name, root)))
                     for _ in range(2))  # fmt: skip
    assert first == second


def test_report_of_a_long_run_is_small(root):
    folder = rec.training(root, stop=20_000).folder
    assert len(report.html(account_of(folder.run_id, root))) < 250_000


# ------------------------------------------------------------------------------ a real browser

WIDTHS = (320, 375, 768, 1280, 1920)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Texts of a picture that lie outside of it, or over one another.
CUT_OR_COVERED = """
[...document.querySelectorAll('figure > svg, svg:root')].flatMap(picture => {
  const whole = picture.getBoundingClientRect();
  const found = [...picture.querySelectorAll('text')].map(
    text => [text.textContent, text.getBoundingClientRect()]);
  const cut = found.filter(([, at]) => at.left < whole.left - 1 || at.right > whole.right + 1
    || at.top < whole.top - 1 || at.bottom > whole.bottom + 1).map(([text]) => 'cut: ' + text);
  const covered = found.flatMap(([one, a], i) => found.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3
  ).map(([other]) => one + ' over ' + other));
  return [...cut, ...covered];
}).join('; ')
"""


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "browser")
    yield opened
    opened.close()


def test_browser_shows_reports_whole_at_every_width_and_asks_for_nothing(root, browser, tmp_path):
    race = races.done(root)
    leaderboard.append(root.board, leaderboard.make_entry(score.compute(race.folder, root)))
    others = [
        make(root, f"super-20260101-000000-000{at}").folder
        for at, make in enumerate((races.diverged, races.resumed, races.failed))
    ]
    pages = {}
    for folder in (race.folder, *others, rec.preparing(root)):
        path = tmp_path / f"{folder.run_id}.html"
        path.write_text(report.html(account_of(folder.run_id, root)), encoding="utf-8")
        pages[f"file://{path}"] = folder.run_id

    picture = tmp_path / "loss.svg"
    marked = export.gather(others[1].run_id, root).state
    picture.write_text(svg.document(curves.loss_chart(marked)), encoding="utf-8")

    async def look():
        wrong = []
        async with aiohttp.ClientSession() as session:
            await browser.connect(session)
            for url, run_id in pages.items():
                for width in WIDTHS:
                    scheme = "dark" if width % 2 else "light"
                    await browser.show(url, width=width, scheme=scheme)
                    assert run_id in await browser.value("document.body.innerText")
                    beyond = await browser.value(OVERFLOW)
                    texts = await browser.value(CUT_OR_COVERED)
                    wrong += [(run_id, width, beyond, texts)] if beyond or texts else []
            await browser.show(picture.as_uri(), width=900)
            texts = await browser.value(CUT_OR_COVERED)
            wrong += [(picture.name, texts)] if texts else []
            await browser.show(next(iter(pages)), width=1280)
            shown = await browser.value("document.body.innerText")
            await browser.value("document.querySelector('summary').click()")
            opened = await browser.value("document.body.innerText")
        return wrong, shown, opened

    wrong, shown, opened = asyncio.run(look())
    assert not wrong, wrong
    assert "3.27400 at step 4,864" in shown
    assert "1 of 1 among fineweb-edu <= 3.28" in shown
    assert "optim.lr_dense" not in shown
    assert "optim.lr_dense" in opened
    assert browser.complaints() == []
    assert {url for url in browser.requested() if url != "data:,"} == {*pages, picture.as_uri()}
