"""What is gathered of a run and where it is written: every state, destination, the command."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness import export, leaderboard, runs, score, standings
from harness.errors import MachineError, RunError, UsageError
from nmoe import events as ev
from nmoe.paths import REPO_ROOT
from tests.harness.finished_run import make_plan, write_run
from tests.tui import boards, races
from tests.tui import recordings as rec
from tests.tui.screen import held

EXPORTS = ("html", "svg", "csv", "json", "mllog")


@pytest.fixture
def root(data_dir):
    return rec.data_root(data_dir)


@pytest.fixture
def account(root):
    return gather(races.done(root).folder.run_id, root)


def gather(name, root):
    return export.gather(str(name), root, repo_board=root.path / "none.json")


def n(*arguments, root):
    return subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli", *map(str, arguments)],
        env=os.environ | {"DATA_DIR": str(root.path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- account


def test_place_is_that_of_the_board(root):
    boards.write_board(root, count=2)
    (standing,) = leaderboard.standings(leaderboard.load(root.board))
    for row in standing.rows:
        place = gather(row.entry.result.run_id, root).place
        assert (place.rank, place.count, place.entry) == (row.rank, 2, row.entry)
        assert place.board == root.board


def test_run_on_no_board_has_no_place(root):
    assert gather(races.done(root).folder.run_id, root).place is None


def test_broken_board_is_said_and_stops_no_export(root):
    folder = races.done(root).folder
    root.board.write_text("{torn")
    found = gather(folder.run_id, root)
    assert found.place is None
    assert str(root.board) in found.board_problem


def test_run_is_found_by_the_path_of_its_copy(root, tmp_path):
    folder = races.diverged(root).folder
    copy = tmp_path / "copy"
    folder.root.rename(copy)
    assert gather(copy, root).status == "diverged"


def test_folder_without_plan_and_events_is_refused(root, tmp_path):
    with pytest.raises(RunError, match="neither a plan nor events"):
        gather(f"{tmp_path}/", root)


def test_run_whose_plan_is_lost_is_still_told(root):
    folder = races.done(root).folder
    folder.plan.write_text("{torn")
    found = gather(folder.run_id, root)
    assert found.evidence is None
    assert found.state.losses.length > 100


def gpu(index, joules, power=900.0):
    return ev.GpuEvent(index=index, energy_j=joules, power_w=power)


def test_energy_is_counted_up_to_the_passing_validation(root):
    """Scoring CORE takes energy, too, and is not on the clock."""
    race = races.Race(root, races.RUN_ID)
    race.begin()
    at_start = [gpu(index, 1000.0) for index in range(8)]
    race.gpus(*at_start)
    race.train(*race.steps(20), seconds=1.0)
    val = ev.ValEvent(step=20, loss=3.2, bpb=1.0, tokens=10_485_760, train_s=10.4, seconds=1.0)
    race.gpus(*(gpu(index, 3000.0) for index in range(8)))
    race.train(val, ev.PhaseEvent(phase="core-eval"))
    race.core()
    race.time += 60.0
    race.gpus(*(gpu(index, 9000.0) for index in range(8)))
    race.train(races._outcome("done", 20, train_s=10.4), seconds=1.0)
    scored = score.compute(race.folder, root)
    assert scored.evidence.energy_j == 8 * 2000.0
    assert scored.evidence.telemetry.samples == 16
    entry = leaderboard.make_entry(scored)
    assert entry.result.energy_j == 16_000.0
    assert standings.joules_per_token(entry) == 16_000.0 / (20 * races.BATCH)
    assert gather(race.folder.run_id, root).evidence.energy_j == 16_000.0


def test_power_is_that_of_all_gpus_when_all_of_them_told_it(root):
    race = races.healthy(root, stop=20)
    start = next(
        record.time
        for record in runs.read_all(race.folder)[1]
        if isinstance(record.event, ev.PhaseEvent) and record.event.phase == "training"
    )
    race.folder.gpus.unlink()
    race._seq["gpus"] = 0
    race.time = start
    race.gpus(*(gpu(index, 0.0, power=100.0) for index in range(8)))
    race.time += 1
    race.gpus(gpu(0, 0.0, power=None), *(gpu(index, 0.0) for index in range(1, 8)))
    race.time += 1
    race.gpus(*(gpu(index, 0.0, power=200.0) for index in range(8)))
    assert export.power(gather(race.folder.run_id, root)) == ((0.0, 800.0), (2.0, 1600.0))


# ---------------------------------------------------------------------------------------- JSON


def test_json_is_strict_and_holds_state_series_and_entry(root):
    boards.write_board(root, count=1)
    (entry,) = leaderboard.load(root.board).entries
    found = gather(entry.result.run_id, root)
    told = json.loads(export.to_json(found), parse_constant=pytest.fail)
    assert told["run"]["status"] == "done"
    assert told["run"]["plan"]["preset"] == "pocket"
    assert told["entry"] == json.loads(json.dumps(asdict(entry)))
    assert (told["place"]["rank"], told["place"]["count"]) == (1, 1)
    losses = [row["loss"] for row in told["series"] if row["kind"] == "step"]
    assert losses == list(found.state.losses.values)
    vals = [row["bpb"] for row in told["series"] if row["kind"] == "val"]
    assert vals == [val.bpb for val in found.state.val_events]


def test_json_names_what_is_not_finite(root):
    told = json.loads(export.to_json(gather(rec.diverged(root).run_id, root)))
    last = [row for row in told["series"] if row["kind"] == "step"][-1]
    assert last["loss"] is None
    assert last["nf"] == ["loss"]
    assert "nf" not in told["series"][0]


# --------------------------------------------------------------------------------- destination


def test_existing_file_is_replaced_only_when_forced(account, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"a\.csv exists.*--force"):
        export.destination(str(path), account.folder, "csv", force=False)
    assert export.destination(str(path), account.folder, "csv", force=True) == path
    assert path.read_text() == "mine"


def test_folder_gets_a_file_named_after_the_run(account, tmp_path):
    found = export.destination(str(tmp_path), account.folder, "svg", force=False)
    assert found == tmp_path / f"{account.folder.run_id}.svg"


def test_link_is_followed_so_that_it_stays_one(account, tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    path = export.destination(str(link), account.folder, "csv", force=True)
    export.write(path, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("{tmp}/none/a.csv", "no folder"),
        ("/dev/null", "no regular file"),
        ("{run}/train.jsonl", "nobody but the run"),
        ("{run}/new.csv", "nobody but the run"),
        ("{run}", "nobody but the run"),
        ("{run}/logs/../plan.json", "nobody but the run"),
    ],
)
def test_place_that_is_no_place_is_refused_even_when_forced(account, tmp_path, file, problem):
    file = file.format(tmp=tmp_path, run=account.folder.root)
    with pytest.raises(UsageError, match=problem):
        export.destination(file, account.folder, "csv", force=True)


def test_disk_that_refuses_is_said_and_leaves_nothing(tmp_path):
    path = tmp_path / ("x" * 250)
    with pytest.raises(MachineError, match="cannot write"):
        export.write(path, "text")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------- the command


def test_command_writes_a_report_into_the_data_root_and_never_over_one(root):
    folder = races.failed(root).folder
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    paths = [n("export", "last", root=root).stdout.strip() for _ in range(2)]
    assert len({*paths, *map(str, root.exports.iterdir())}) == 2
    assert all(Path(path).read_text().startswith("<!doctype html>") for path in paths)
    after = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    assert after == before


def test_command_writes_many_files_and_one_stdout(root, tmp_path):
    run_id = races.diverged(root).folder.run_id
    files = [part for kind in EXPORTS[:-1] for part in (f"--{kind}", tmp_path)]
    done = n("export", run_id[:-2], *files, "--mllog", "-", root=root)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"{run_id}.{k}" for k in EXPORTS[:-1]}
    assert all(line.startswith(":::MLLOG {") for line in done.stdout.splitlines())
    kept = (tmp_path / f"{run_id}.csv").read_text()
    again = n("export", run_id, "--json", "-", "--csv", tmp_path, root=root)
    assert again.returncode == 2
    assert again.stdout == ""
    assert "exists" in again.stderr
    assert (tmp_path / f"{run_id}.csv").read_text() == kept


def test_two_exports_never_share_a_place(root, tmp_path):
    races.diverged(root)
    for places in (("-", "-"), (tmp_path / "a", tmp_path / "a")):
        done = n("export", "last", "--csv", places[0], "--svg", places[1], root=root)
        assert done.returncode == 2
        assert "Name a file for" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- a board


def test_board_as_csv_has_every_entry_and_published_row(root):
    boards.write_board(root, count=2)
    found = leaderboard.boards(root)
    rows = list(csv.DictReader(io.StringIO(standings.sheet(found).csv())))
    own = [row for row in rows if row["rank"]]
    assert [row["rank"] for row in own] == ["1", "1"]
    for row, entry in zip(own, found[1].entries, strict=True):
        assert float(row["train_s"]) == entry.result.train_s
        assert float(row["loss"]) == entry.result.loss
        assert (row["run_id"], row["entry_id"]) == (entry.result.run_id, entry.entry_id)
        assert row["energy_j"] == ""
    published = [row for row in rows if not row["rank"]]
    assert len(published) == len(found[0].published)
    assert {row["status"] for row in published} == {leaderboard.PUBLISHED_MARK}


HOSTILE = "=cmd|' /C calc'!A0 <script>alert(1)</script> [x](javascript:1) | a\nb \x1b[31m"


def test_hostile_names_on_a_board_are_text(root):
    plan = make_plan()
    hardware = replace(plan.hardware, cpu=HOSTILE)
    folder = write_run(root, plan=replace(plan, preset=HOSTILE, hardware=hardware))
    leaderboard.append(root.board, leaderboard.make_entry(score.compute(folder, root)))
    board = leaderboard.load(root.board)
    (row,) = csv.DictReader(io.StringIO(standings.sheet([board]).csv()))
    assert row["preset"].startswith("'=cmd")
    assert row["machine"].startswith("'=cmd")
    text = "\n".join(standings.markdown_lines([board]))
    assert "<script" not in text
    assert "\x1b" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 3
    assert r"\[x\](javascript" in text


def test_board_is_shown_in_one_format(root):
    boards.write_board(root, count=1)
    done = n("leaderboard", "--markdown", root=root)
    assert "### pocket" in done.stdout
    assert "published, not verified here" in done.stdout
    assert str(REPO_ROOT / "LEADERBOARD.json") in done.stdout
    assert n("leaderboard", "--csv", "--markdown", root=root).returncode == 2


def test_run_that_goes_on_is_told_as_it_is(root):
    folder = rec.training(root).folder
    with held(folder):
        found = gather(folder.run_id, root)
    assert found.is_alive
    assert found.place is None
    assert not found.reached
