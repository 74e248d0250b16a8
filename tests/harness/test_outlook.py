"""What a run is expected to take: each basis, their order, and nothing without one."""

import json
from dataclasses import replace
from statistics import stdev

import pytest

from harness import hardware, leaderboard, plan, score
from harness.doctor import prospects
from harness.entry import Replicates
from harness.outlook import Outlook, ceilings, outlook, time_words
from harness.significance import spread
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT
from tests.harness.finished_run import make_plan, write_run

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
IDS = [f"pocket-20260101-00000{index}-abcd" for index in range(4)]
OWN = "pocket-20260102-000000-abcd"
STEPS, BATCH = 12_000, 524_288  # of super


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="test")


def enter(root, run_id, *, train_s, loss=None, repeats=None):
    folder = write_run(root, plan=make_plan(run_id), train_s=train_s, loss=loss)
    entry = replace(leaderboard.make_entry(score.compute(folder, root)), replicates=repeats)
    leaderboard.append(root.board, entry)


def look(run, root, *, rows=(), published=()) -> Outlook:
    """The outlook with a board of the repository and results of its own."""
    board, results = root.path / "repo.json", root.path / "results"
    results.mkdir(exist_ok=True)
    (results / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ",\n".join(json.dumps(row) for row in published)
    board.write_text(f'{{"format":2,"entries":[\n],"published":[\n{lines}\n],"head":null}}\n')
    return outlook(run, root, repo_board=board, results=results)


def on(name: str, root, **options):
    detection = hardware.detect(fake=SCENARIOS / f"{name}.json")
    return plan.resolve(preset="super", detection=detection, root=root, **options)


def row(**changes):
    facts = {"what": "step", "shape": "super", "implementation": "nmoe", "gpu": "NVIDIA H200"}
    return facts | {"gpus": 2, "commit": "c", "date": "2026-11-01T00:00:00", "rate": 3e5} | changes


def published(**changes):
    facts = {"preset": "super", "machine": "H200", "devices": 2, "dtype": "bf16", "target": 3.28}
    what = {"status": "published, not verified here", "source": "others", "task": "fineweb-edu"}
    done = {"train_s": 1000.0, "step": 4, "tokens": 2_000_000, "loss": 3.27, "core": 0.05}
    return facts | what | done | changes


def test_nothing_is_expected_without_a_basis(root):
    found = look(make_plan(OWN), root)
    assert found.pace is None
    assert (found.spread.n, found.spread.loss, found.spread.train_s) == (0, None, None)
    assert "not known: no run" in time_words(found)
    assert "not known: 0 finished run(s)" in prospects._variance(found.spread).value


def test_runs_on_the_boards_are_the_first_basis(root):
    for run_id, train_s in zip(IDS, (50.0, 90.0, 60.0), strict=False):
        enter(root, run_id, train_s=train_s)
    found = look(make_plan(OWN), root).pace
    assert (found.train_s, found.is_most) == (60.0, False)
    assert found.basis == "median of 3 run(s) of this cohort on the boards"
    assert look(make_plan(OWN, dtype="bf16"), root).pace is None


def test_spread_needs_two_runs_and_names_how_many(root):
    enter(root, IDS[0], train_s=50.0, loss=1.28)
    one = look(make_plan(OWN), root).spread
    assert (one.n, one.loss, one.train_s) == (1, None, None)
    assert "1 finished run(s)" in prospects._variance(one).value
    enter(root, IDS[1], train_s=60.0, loss=1.26)
    two = look(make_plan(OWN), root).spread
    assert two.n == 2
    assert two.loss == pytest.approx(stdev([1.28, 1.26]))
    assert two.train_s == pytest.approx(stdev([50.0, 60.0]))
    assert prospects._variance(two).value == (
        "sd of loss 0.0141, of time 7.1 s (2 runs of this cohort, each at its target)"
    )


def test_repeats_at_one_step_are_the_better_spread(root):
    losses, times = (1.25, 1.27, 1.26), (50.0, 51.0, 55.0)
    repeats = Replicates(
        series="s", registered_utc="2026-01-01T00:00:00+00:00", horizon=2400, n=3, started=3,
        finished=3, failed=0, run_ids=tuple(IDS[:3]), seeds=(1, 2, 3), statuses=("done",) * 3,
        losses=losses, times_s=times, mean_loss=1.26, sd_loss=spread(losses), mean_train_s=52.0,
        sd_train_s=spread(times), sigma=0.01, sigma_from="x", sigma_df=2, z=1.0, p=0.2,
    )  # fmt: skip
    enter(root, IDS[0], train_s=50.0, repeats=repeats)
    enter(root, IDS[3], train_s=500.0)
    found = look(make_plan(OWN), root).spread
    assert (found.n, found.basis) == (3, "3 repeats at step 2,400")
    assert (found.loss, found.train_s) == (stdev(losses), pytest.approx(stdev(times)))


def test_newest_run_here_tells_the_speed_where_no_board_does(root):
    write_run(root, plan=make_plan(IDS[0]), train_s=60.0)
    write_run(root, plan=make_plan(IDS[1], dtype="bf16"), train_s=1.0)  # another kind of run
    run = make_plan(OWN)
    found = look(run, root).pace
    tokens = run.train.batch_size * run.train.seq_len
    assert found.is_most
    assert found.tok_s == pytest.approx(200 * tokens / 60.0)
    assert found.train_s == pytest.approx(run.train.steps * tokens / found.tok_s)
    assert IDS[0] in found.basis


def test_row_of_as_many_such_gpus_is_a_basis_for_the_whole_budget(root):
    rows = [
        row(rate=2e5, date="2026-10-01T00:00:00"),
        row(),
        row(rate=9e5, gpus=1, date="2026-12-01T00:00:00"),
        row(rate=9e5, gpu="NVIDIA H100 80GB HBM3", date="2026-12-01T00:00:00"),
        row(rate=9e5, implementation="plain torch", date="2026-12-01T00:00:00"),
        row(rate=9e5, shape="dense", date="2026-12-01T00:00:00"),
    ]
    found = look(on("h200x2", root), root, rows=rows, published=[published()]).pace
    assert found.tok_s == 6e5
    assert found.train_s == pytest.approx(STEPS * BATCH / 6e5)
    assert (found.is_most, found.basis) == (True, "`n bench step` on 2 x H200, 2026-11-01")


def test_what_others_published_is_the_last_basis_and_says_so(root):
    rows = [published(), published(train_s=2000.0), published(machine="H100", train_s=1.0)]
    found = look(on("h200x2", root), root, published=rows).pace
    assert (found.train_s, found.is_most) == (1500.0, False)
    assert found.basis == "median of 2 result(s) of others, published, not verified here"


def test_newest_ceiling_of_such_a_gpu_is_found(tmp_path):
    rows = [
        row(what="ceiling peer", shape="", implementation="torch", rate=rate, date=date)
        for rate, date in ((390.0, "2026-01-01"), (400.0, "2026-02-01"))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert {name: row.rate for name, row in ceilings("H200", tmp_path).items()} == {"peer": 400.0}
    assert ceilings("H100", tmp_path) == ceilings("H200", tmp_path / "none") == {}
