"""Mixtures: what a file may say, the quotas it leads to, and what is refused with which fix."""

import json
from pathlib import Path

import pytest

from nmoe.config import Config, ConfigError, config_digest, read_config, read_plan
from nmoe.data.manifest import DataError
from nmoe.data.mixture import make_flow, prep_words, read_mixture, read_profile
from nmoe.flow import Flow
from nmoe.paths import REPO_ROOT, DataRoot
from tests import tiny
from tests.data.datasets import write_counting
from tests.harness.finished_run import make_plan

MIXTURE = """
tokenizer = "none"
[sources.web]
source = "text"
dataset = "web"
weight = 3
[sources.math]
source = "text"
dataset = ["a", "b"]
weight = 0.5
"""
PROFILES = """
[[late]]
name = "broad"
tokens = 5_120
[[late]]
name = "end"
weights = { math = 1 }
"""
SIZES = {"web": (3000, 300), "math": (400,)}


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """A data root with the sources of the mixture prepared."""
    for name, shards in SIZES.items():
        write_counting(tmp_path / "mixed" / name, shards)
    return DataRoot(path=tmp_path, reason="a test")


def write_run(folder: Path, mixture: str = MIXTURE, profiles: str = "", mode: str = "") -> Config:
    """The tiny preset, 24 steps of 8 windows of 32 tokens, on a mixture."""
    (folder / "mixture.toml").write_text(mixture)
    (folder / "profiles.toml").write_text(profiles)
    data = f'flow_mode = "{mode or "mixture"}"\nmixture_toml = "mixture.toml"\n'
    data += 'flow_profiles_toml = "profiles.toml"\n'
    text = tiny.CONFIG.replace('data_path = "tiny"\n', f'data_path = "mixed"\n{data}')
    text = text.replace('tokenizer = "byte"', 'tokenizer = "none"')
    return read_config(tiny.write_config(folder, text))


def flow_of(root: DataRoot, *args: str, **kwargs: str) -> Flow:
    flow = make_flow(write_run(root.path, *args, **kwargs), root)
    assert flow is not None
    return flow


def test_run_without_a_mixture_has_no_flow(root: DataRoot) -> None:
    assert make_flow(read_config(tiny.write_config(root.path)), root) is None


def test_weights_decide_the_quotas_exactly(root: DataRoot) -> None:
    flow = flow_of(root)

    (stage,) = flow.stages
    assert stage.quotas == (165, 27)  # 6 : 1 of 192
    assert [(source.name, source.windows) for source in flow.sources] == [
        ("web", 100),
        ("math", 12),
    ]
    assert flow.sources[0].path == "mixed/web"


@pytest.mark.parametrize(
    ("temperature", "quotas"),
    # 3300 and 400 tokens: 8.25 : 1, its square root 2.872 : 1, its hundredth root 1.021 : 1
    [("", (171, 21)), ("temperature = 2.0", (142, 50)), ("temperature = 100", (97, 95))],
)
def test_temperature_flattens_the_shares_of_the_sizes(
    root: DataRoot, temperature: str, quotas: tuple[int, int]
) -> None:
    mixture = MIXTURE.replace("weight = 3", "").replace("weight = 0.5", "")

    flow = flow_of(root, mixture.replace("[sources.web]", f"{temperature}\n[sources.web]"))

    assert flow.stages[0].quotas == quotas


def test_stages_have_their_tokens_and_their_own_weights(root: DataRoot) -> None:
    flow = flow_of(root, profiles=PROFILES, mode="late")

    assert [(stage.name, stage.quotas) for stage in flow.stages] == [
        ("broad", (137, 23)),  # 5120 / 32 windows
        ("end", (0, 32)),
    ]
    closed = PROFILES.replace('name = "end"', 'name = "end"\ntokens = 1_000')  # within a step
    assert flow_of(root, profiles=closed, mode="late").stages == flow.stages
    heated = PROFILES.replace("weights = { math = 1 }", "temperature = 1")
    assert flow_of(root, profiles=heated, mode="late").stages[1].quotas == (29, 3)


def test_flow_survives_plan_json_and_its_digest_tells_of_data_and_quotas(root: DataRoot) -> None:
    config = write_run(root.path, profiles=PROFILES, mode="late")
    flow = make_flow(config, root)
    plan = make_plan(config=config, flow=flow)
    path = root.path / "plan.json"
    path.write_text(plan.to_json())

    assert read_plan(path) == plan
    digests = {flow_of(root, profiles=PROFILES, mode="late").digest, flow_of(root).digest}
    write_counting(root.path / "mixed" / "math", (401,))
    digests.add(flow_of(root).digest)
    assert len(digests) == 3


def test_paths_of_mixture_files_are_not_part_of_the_recipe(root: DataRoot, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here, there = write_run(root.path), write_run(tmp_path / "elsewhere")

    assert here.data.mixture_toml == str(root.path / "mixture.toml")
    assert here.data.mixture_toml != there.data.mixture_toml
    assert config_digest(here) == config_digest(there)


def test_prepared_dataset_is_named_by_its_path(root: DataRoot) -> None:
    mixture = MIXTURE.replace('source = "text"\ndataset = "web"', 'path = "elsewhere/web"')
    write_counting(root.path / "elsewhere" / "web", (990,))

    flow = flow_of(root, mixture)

    assert (flow.sources[0].path, flow.sources[0].windows) == ("elsewhere/web", 30)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('tokenizer = "none"', "", "tokenizer: got None"),
        ('tokenizer = "none"', 'tokeniser = "none"', 'unknown key "tokeniser". Did you mean "to'),
        (
            "weight = 3",
            "wieght = 3",
            r'\[sources.web\] unknown key "wieght". Did you mean "weight"',
        ),
        ("weight = 3", "weight = 0", r"\[sources.web\] weight: got 0, expected a number above zer"),
        ("weight = 3", "weight = -1", "weight: got -1"),
        ("weight = 3", "weight = nan", "weight: got NaN"),
        ("weight = 3", "weight = 1e-900000000", "weight: got 1E-900000000"),
        ("weight = 3", "weight = true", "weight: got True"),
        ("weight = 3", "", "got a weight for math, expected one for every source"),
        ("[sources.web]", "temperature = 2\n[sources.web]", "and no temperature"),
        ("[sources.web]", "temperature = 0\n[sources.web]", "no temperature|temperature: got 0"),
        ('dataset = "web"', 'path = "x"', "expected either path"),
        ('source = "text"\ndataset = "web"', "", "expected either path"),
        ('dataset = "web"', "dataset = 3", 'expected source = "parquet"'),
        ("[sources.web]", "[sources.val]", 'and not "val"'),
        ("[sources.web]", '[sources."a/b"]', "a source's folder is named like it"),
        (MIXTURE, 'tokenizer = "none"', "no sources. Add a table such as"),
        ("weight = 3", "weight == 3", "cannot be read as TOML"),
    ],
)
def test_mixture_is_refused_when_it_is_wrong(
    root: DataRoot, before: str, after: str, message: str
) -> None:
    assert before in MIXTURE
    (root.path / "mixture.toml").write_text(MIXTURE.replace(before, after, 1))

    with pytest.raises(ConfigError, match=message) as refusal:
        read_mixture(root.path / "mixture.toml")
    assert "mixture.toml" in str(refusal.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("late", "lake", 'no profile "late" for .* Did you mean "lake"'),
        ("tokens = 5_120", "", "broad has no tokens; only the last stage may"),
        ("tokens = 5_120", "tokens = 0", "broad tokens: got 0"),
        ("tokens = 5_120", "tokens = 10.5", "broad tokens: got 21/2, expected a whole number"),
        ("tokens = 5_120", "tokens = 6144", "end of late is never reached.*steps to 25 or more"),
        ("tokens = 5_120", "tokens = 31", "broad of late holds no whole window: got 31"),
        ('name = "broad"', 'name = "end"', "names a stage twice"),
        ('name = "broad"', "", "a stage has no name"),
        ("math = 1", "maths = 1", 'no source "maths". Did you mean "math"'),
        ("math = 1", "math = 0", "weight of math: got 0"),
        ("weights = { math = 1 }", "weights = {}", "expected weights = { source = number"),
        ("weights = { math = 1 }", "weight = 1", 'unknown key "weight". Did you mean "weights"'),
        ('name = "end"', 'name = "end"\ntokens = 2_000', "hold 7,120 tokens.*6,144.*steps to 28"),
        ('name = "end"', 'name = "end"\ntokens = 100', "hold 5,220 tokens.*train.steps to 21"),
        (PROFILES, "late = 3", "late holds no stages"),
    ],
)
def test_profile_is_refused_when_it_does_not_fit(
    root: DataRoot, before: str, after: str, message: str
) -> None:
    assert before in PROFILES
    with pytest.raises(ConfigError, match=message):
        flow_of(root, profiles=PROFILES.replace(before, after), mode="late")


def test_missing_source_is_refused_with_the_command_that_makes_it(root: DataRoot) -> None:
    (root.path / "mixed" / "math" / "manifest.json").unlink()

    with pytest.raises(DataError, match="no dataset for source math of mixture.toml") as refusal:
        flow_of(root)
    command = f"prep-mixture {root.path / 'mixture.toml'} --output {root.path / 'mixed'}"
    assert command in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "tokenizer",
            "byte",
            "source math .* holds tokens of another kind: got byte, expected none",
        ),
        ("vocab_size", 65535, "differ in their vocabularies: math has 65535 ids"),
        ("eos_id", 7, "math has 65536 ids and EOS 7, web has 65536 and 0"),
    ],
)
def test_sources_of_different_tokenizers_are_refused(
    root: DataRoot, field: str, value: str | int, message: str
) -> None:
    path = root.path / "mixed" / "math" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    with pytest.raises(DataError, match=message):
        flow_of(root)


def test_source_too_short_for_a_window_is_refused(root: DataRoot) -> None:
    write_counting(root.path / "mixed" / "math", (32,))

    with pytest.raises(DataError, match="source math is too short: got 32 tokens"):
        flow_of(root)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.flow_mode=mixture"], 'mixture_toml: got "" with flow_mode = "mixture"'),
        (
            ["data.mixture_toml=x.toml"],
            'with flow_mode = "none"; flow_mode "none" reads no mixture',
        ),
        (["data.flow_mode=x", "data.mixture_toml=y"], "flow_profiles_toml must name the file"),
    ],
)
def test_keys_of_a_config_that_contradict_each_other_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(tiny.write_config(tmp_path), overrides=overrides)


def test_words_for_prep_place_local_files_below_the_data_root(root: DataRoot) -> None:
    (root.path / "mixture.toml").write_text(
        MIXTURE + '[validation]\nsource = "stdlib"\n' + ('dataset = "val"\nmax_tokens = "1M"\n')
    )

    words = prep_words(read_mixture(root.path / "mixture.toml"), Path("out"), root)

    assert list(words) == ["web", "math", "val"]
    assert words["math"] == [
        *("--output", "out/math", "--name", "mixture-math", "--tokenizer", "none"),
        *("--source", "text", "--dataset", f"{root.path}/a", f"{root.path}/b"),
    ]
    assert words["val"][-6:] == ["--source", "stdlib", "--dataset", "val", "--max-tokens", "1M"]


@pytest.mark.parametrize("path", sorted((REPO_ROOT / "configs" / "mixtures").glob("*.toml")))
def test_examples_can_be_read(path: Path) -> None:
    if path.name == "profiles.toml":
        for name in ("code_last", "anneal"):
            assert len(read_profile(path, name)) >= 2
    else:
        assert len(read_mixture(path).sources) >= 2
