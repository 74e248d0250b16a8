"""Configuration: every preset parses, every mistake is named, plans survive a round trip."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nmoe import config as configs
from nmoe.config import (
    Config,
    ConfigError,
    Digests,
    Hardware,
    Plan,
    config_digest,
    read_config,
    read_plan,
)
from nmoe.paths import REPO_ROOT
from tests import tiny

PRESETS = sorted((REPO_ROOT / "configs").glob("speedrun/*.toml"))


def make_plan(config: Config, **changes: object) -> Plan:
    values = {name: getattr(config, name) for name in asdict(config)}
    values |= {
        "run_id": "tiny-20260101-000000-abcd",
        "created": "2026-01-01T00:00:00+00:00",
        "world": 1,
        "device": "cpu",
        "dtype": "fp32",
        "dtype_reason": "because",
        "choice": "named",
        "hardware": Hardware(cpu="A CPU", cores=2),
        "digests": Digests(config=config_digest(config)),
    }
    return Plan(**(values | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write_config(tmp_path)


def test_presets_are_the_five_of_the_speedrun() -> None:
    assert {path.stem for path in PRESETS} == {"pocket", "dense", "moe", "super", "ultra"}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_parses_with_the_common_loader(preset: Path) -> None:
    config = read_config(preset)
    assert config.preset == preset.stem
    if preset.stem != "pocket":
        assert config.target.target_loss == 3.28
        assert config.train.batch_size * config.train.seq_len == 524_288
        assert config.validation.windows == 5120
        assert config.validation.every == 128


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr_dense=1e-3", 1e-3),
        ("optim.lr_dense=1E-3", 1e-3),
        ("optim.lr_dense=.5", 0.5),
        ("optim.lr_dense=1", 1.0),
        ("train.steps=1_000", 1000),
        ("train.steps=1e3", 1000),
        ("train.deterministic=false", False),
        ("model.impl=reference", "reference"),
        ('model.impl="reference"', "reference"),
    ],
)
def test_override_parses_as_toml_or_as_a_bare_word(
    path: Path, override: str, expected: object
) -> None:
    section, key = override.partition("=")[0].split(".")
    value = getattr(getattr(read_config(path, overrides=[override]), section), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "experts.num_expert=8",
            'unknown key "num_expert" in [experts]. Did you mean "num_experts"?',
        ),
        ("expert.top_k=2", 'unknown section "expert" at the top level. Did you mean "experts"?'),
        ("train.steps=many", "train.steps: got str 'many', expected int"),
        ("train.steps=1.5", "train.steps: got float 1.5, expected int"),
        ("train.steps=true", "train.steps: got bool True, expected int"),
        ("model.impl=tritn", "model.impl: got 'tritn'. Did you mean \"triton\"?"),
        ("train.dtype=fp9", "train.dtype: got 'fp9'."),
        ("steps=3", "--set: got 'steps=3', expected section.key=value"),
        ("train.steps", "expected section.key=value"),
        ("experts.top_k=9", "top_k must be between 1 and num_experts"),
        ("model.num_heads=3", "dim must be a multiple of num_heads"),
        ("train.steps=0", "steps must be positive"),
        ("eval.every=-1", "every, cap and interim_cap must not be negative"),
    ],
)
def test_override_is_refused_by_name(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides=[override])
    assert message in str(caught.value)


def test_config_names_a_missing_section_and_a_missing_key(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("[target]\ntarget_loss = 0.01", ""))
    with pytest.raises(ConfigError, match='missing section "target"'):
        read_config(path)
    path.write_text(text.replace("target_loss = 0.01", ""))
    with pytest.raises(ConfigError, match=r'missing key "target\.target_loss"'):
        read_config(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[model", b"model = 3\n"])
def test_config_refuses_a_file_that_is_not_a_config(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=path.name):
        read_config(path)


def test_config_names_the_file_when_it_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config file not found"):
        read_config(tmp_path / "none.toml")


def test_plan_survives_a_round_trip_through_its_file(path: Path, tmp_path: Path) -> None:
    plan = make_plan(read_config(path), versions={"python": "3.11.7"})
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert read_plan(file) == plan


def test_plan_file_is_refused_when_broken(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with pytest.raises(ConfigError, match="not a run folder"):
        read_plan(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a plan"):
        read_plan(file)
    raw = json.loads(make_plan(read_config(path)).to_json())
    del raw["world"]
    file.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match='missing key "world"'):
        read_plan(file)


def test_plan_refuses_a_batch_that_ranks_cannot_share(path: Path) -> None:
    config = read_config(path)
    assert make_plan(config, world=4).accumulation == 1
    assert make_plan(config, world=2).accumulation == 2
    with pytest.raises(ConfigError, match="Change micro_batch"):
        make_plan(config, world=8)


def test_plan_refuses_experts_that_ranks_cannot_share(path: Path) -> None:
    config = read_config(path, overrides=["experts.num_experts=9", "train.micro_batch=1"])
    with pytest.raises(ConfigError, match="num_experts: got 9"):
        make_plan(config, world=2)


def test_digest_changes_with_meaning_only(path: Path) -> None:
    config = read_config(path)
    same = replace(
        config,
        preset="other",
        log=replace(config.log, every=1),
        train=replace(config.train, steps=7, seed=8, micro_batch=1),
        data=replace(config.data, data_path="/elsewhere"),
        eval=replace(config.eval, every=5, interim_cap=7),
    )
    assert config_digest(same) == config_digest(config)
    capped = replace(config, eval=replace(config.eval, cap=config.eval.cap + 1))
    assert config_digest(capped) != config_digest(config)
    for section in ("model", "optim", "schedule", "experts"):
        part = getattr(config, section)
        name = next(key for key, value in asdict(part).items() if isinstance(value, int | float))
        other = replace(config, **{section: replace(part, **{name: getattr(part, name) * 2})})
        assert config_digest(other) != config_digest(config), section


def test_every_is_due_never_when_zero() -> None:
    log = configs.Log(every=4)
    assert [step for step in range(1, 10) if log.is_due(step)] == [4, 8]
    assert not configs.Validation(every=0, windows=1).is_due(4)
