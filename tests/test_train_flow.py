"""Training on the example mixture in two stages: events, resume, ranks, bad days."""

import json
import time
from pathlib import Path

import pytest

from nmoe.config import read_plan
from nmoe.data import cli
from nmoe.events import AlertEvent, StageEvent, StepEvent, StopAckEvent
from nmoe.paths import REPO_ROOT, RunFolder
from tests import tiny

CONFIGS = REPO_ROOT / "configs"
STEPS = 40
# A step is 1,024 tokens: the second stage begins within step 13.
PROFILES = """
[[two]]
name = "broad"
tokens = 12_600
[[two]]
name = "pages"
weights = { code = 1, docs = 3 }
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example mixture."""
    folder = tmp_path_factory.mktemp("prepared")
    mixture = str(CONFIGS / "mixtures" / "stdlib.toml")
    assert cli.main(["prep-mixture", mixture, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def roots(tmp_path: Path, prepared: Path) -> list[Path]:
    """Two data roots on the same data."""
    made = [tmp_path / name for name in ("a", "b")]
    for root in made:
        (root / "mixtures").mkdir(parents=True)
        (root / "mixtures" / "stdlib").symlink_to(prepared)
    (tmp_path / "profiles.toml").write_text(PROFILES)
    return made


def arguments(root: Path, *overrides: str) -> list[str]:
    """The example's configuration, cut short, with the stages of this file."""
    settings = (
        *(f"train.steps={STEPS}", f"checkpoint.every={STEPS}", "log.every=2"),
        *("validation.every=0", "validation.windows=8", "data.flow_mode=two"),
        *(f"data.flow_profiles_toml={root.parent / 'profiles.toml'}", *overrides),
    )
    words = [word for setting in settings for word in ("--set", setting)]
    return [str(CONFIGS / "pocket_mixture.toml"), *words]


def losses(folder: RunFolder) -> dict[int, float]:
    steps = [record.event for record in tiny.events(folder, StepEvent)]
    return {event.step: event.loss for event in steps if isinstance(event, StepEvent)}


def stages(folder: RunFolder) -> list[tuple[int, str]]:
    began = [record.event for record in tiny.events(folder, StageEvent)]
    return [(event.step, event.name) for event in began if isinstance(event, StageEvent)]


def test_run_stopped_in_its_second_stage_goes_on_bit_for_bit(roots: list[Path]) -> None:
    assert tiny.run_here(arguments(roots[0]), roots[0]) == 6
    whole = tiny.only_run(roots[0])
    assert stages(whole) == [(0, "broad"), (12, "pages")]

    ranks = tiny.start_ranks(arguments(roots[1]), roots[1])
    deadline = time.monotonic() + 60
    while not any('"step":16,' in log.read_text() for log in roots[1].glob("runs/*/train.jsonl")):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    broken = tiny.only_run(roots[1])
    broken.control.mkdir(exist_ok=True)
    broken.stop_request.write_text('{"mode": "checkpoint", "by": "test"}')
    assert tiny.finish(ranks) == [130]
    ack = tiny.events(broken, StopAckEvent)[-1].event
    assert isinstance(ack, StopAckEvent)
    assert 16 <= ack.step < STEPS
    assert tiny.run_here(["--run", str(broken.root), "--attempt", "1"], roots[1]) == 6

    assert stages(broken) == stages(whole)
    assert losses(broken) == losses(whole)
    name = f"step_{STEPS:08d}"
    assert tiny.weights_digest(broken, name) == tiny.weights_digest(whole, name)
    flow = read_plan(whole.plan).flow
    assert flow is not None
    # 12,600 tokens are 98 windows of 128, the run has 320; halves go to the first source
    assert [stage.quotas for stage in flow.stages] == [(74, 24), (56, 166)]


def test_two_ranks_read_what_one_reads(roots: list[Path]) -> None:
    short = ("train.steps=16", "checkpoint.every=0")
    assert tiny.run_here(arguments(roots[0], *short), roots[0]) == 6
    args = arguments(roots[1], *short)
    assert tiny.finish(tiny.start_ranks(args, roots[1], world=2)) == [6, 6]

    alone, together = map(tiny.only_run, roots)
    assert stages(together) == stages(alone) == [(0, "broad"), (12, "pages")]
    # a wrong window among the 128 would show in the third digit
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert read_plan(together.plan).flow == read_plan(alone.plan).flow


def test_resume_is_refused_when_a_source_has_changed(roots: list[Path], prepared: Path) -> None:
    short = ("train.steps=14", "checkpoint.every=14")
    assert tiny.run_here(arguments(roots[0], *short), roots[0]) == 6
    folder = tiny.only_run(roots[0])
    (roots[0] / "mixtures" / "stdlib").unlink()
    for name in ("code", "docs", "val"):
        copy = roots[0] / "mixtures" / "stdlib" / name
        copy.mkdir(parents=True)
        for path in (prepared / name).iterdir():
            (copy / path.name).symlink_to(path)
    manifest = roots[0] / "mixtures" / "stdlib" / "docs" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["shards"][0]["sha256"] = "0" * 64
    manifest.unlink()
    manifest.write_text(json.dumps(raw))

    assert tiny.run_here(["--run", str(folder.root), "--attempt", "1"], roots[0]) == 4
    alert = tiny.events(folder, AlertEvent)[-1].event
    assert isinstance(alert, AlertEvent)
    assert "source docs has changed since the plan was made" in alert.message


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("data.flow_mode=tow", 2, 'no profile "tow" for [data] flow_mode. Did you mean "two"?'),
        ("data.mixture_toml=nowhere.toml", 2, "file not found"),
        ("train.steps=12", 2, "stage pages of two is never reached"),
        ("data.tokenizer=gpt2", 4, "source code of stdlib.toml holds tokens of another kind"),
        ("data.data_path=nowhere", 4, "Run: python -m nmoe.data.cli prep-mixture"),
    ],
)
def test_trainer_refuses_a_flow_that_cannot_be(
    roots: list[Path],
    capsys: pytest.CaptureFixture[str],
    override: str,
    code: int,
    message: str,
) -> None:
    assert tiny.run_here(arguments(roots[0], override), roots[0]) == code
    assert message in capsys.readouterr().err
    assert not (roots[0] / "runs").exists()
