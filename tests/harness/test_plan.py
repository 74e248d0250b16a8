"""Preset + machine + flags to a plan: choices, reasons, refusals; nothing named is replaced."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from harness import dataset, tables
from harness import plan as planner
from harness.errors import MachineError, UsageError
from harness.hardware import detect
from nmoe.config import ConfigError, Plan, read_config, read_plan
from nmoe.data.manifest import DataError
from nmoe.flops import count_parameters
from nmoe.paths import REPO_ROOT, DataRoot
from tests.harness.finished_run import write_dataset

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"
TRAINING_MACHINES = (
    "b200x8_busy",
    "b200x8_healthy",
    "b200x8",
    "h100x1_recorded",
    "h100x2_recorded",
    "h100x8",
    "h100x8_troubled",
    "h200x2",
    "h200x1",
    "lost_later",
    "not_available",
)
PRESETS = ("dense", "moe", "pocket", "super", "ultra")


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="a test")


def resolve(machine: str, root: DataRoot, preset: str | None = None, **flags) -> Plan:
    detection = detect(fake=SCENARIOS / f"{machine}.json")
    return planner.resolve(preset=preset, detection=detection, root=root, **flags)


@pytest.mark.parametrize(
    ("machine", "preset", "dtype", "world"),
    [
        ("b200x8", "super", "fp8", 8),
        ("h100x8", "super", "bf16", 8),
        ("h200x2", "super", "bf16", 2),
        ("h200x1", "super", "bf16", 1),
        ("none", "pocket", "fp32", 1),
        ("driver_mismatch", "pocket", "fp32", 1),
        ("a100x8", "pocket", "fp32", 1),
        ("mig", "pocket", "fp32", 1),
    ],
)
def test_machine_decides_preset_and_dtype_when_none_is_named(machine, preset, dtype, world, root):
    plan = resolve(machine, root)
    assert (plan.preset, plan.dtype, plan.world) == (preset, dtype, world)
    assert plan.choice.startswith(f"{preset} on ")
    assert plan.dtype_reason


def test_choice_says_why_there_is_no_gpu_when_pocket_is_offered(root):
    assert "no supported GPU here: A100 is not supported" in resolve("a100x8", root).choice
    assert "no NVIDIA driver library" in resolve("none", root).choice


@pytest.mark.parametrize(
    ("machine", "what"),
    [
        ("none", "no NVIDIA driver library"),
        ("a100x8", "compute capability 8.0"),
        ("b300x8", "compute capability 10.3"),
        ("rtx5090", "compute capability 12.0"),
        ("mig", "MIG mode is on"),
        ("driver_mismatch", "different versions"),
        ("lost", "GPU 7 is lost"),
        ("two_nodes", "2 nodes"),
    ],
)
def test_named_preset_is_refused_with_a_fix_when_the_gpus_cannot_train_it(machine, what, root):
    with pytest.raises(MachineError, match=re.escape(what)) as refusal:
        resolve(machine, root, "super")
    assert "n speedrun" in refusal.value.fix
    assert refusal.value.exit_code == 3


def test_named_gpu_count_is_refused_when_no_gpu_is_there(root):
    with pytest.raises(MachineError, match="super needs a supported GPU"):
        resolve("none", root, gpus=4)


def test_named_gpu_count_is_refused_when_the_host_has_fewer(root):
    with pytest.raises(MachineError) as refusal:
        resolve("h200x2", root, "super", gpus=8)
    assert str(refusal.value) == (
        "plan wants 8 GPUs of compute capability 9.0, this host has 2."
        " Run: n speedrun super --gpus 2"
    )


def test_gpu_count_takes_the_first_gpus(root):
    plan = resolve("h100x8", root, "super", gpus=2)
    assert (plan.world, plan.hardware.num_gpus) == (2, 2)
    assert plan.accumulation * plan.world * plan.train.micro_batch == plan.train.batch_size


@pytest.mark.parametrize(
    ("hardware", "preset", "expected"),
    [
        ("h200x1", "super", 32),
        ("h200x2", "super", 32),
        ("h100x8", "moe", 32),
        ("h100x8", "super", 32),
        ("h100x8", "dense", 32),
    ],
)
def test_micro_batch_leaves_room_for_the_rows_of_all_ranks(hardware, preset, expected, root):
    plan = resolve(hardware, root, preset)
    assert plan.train.micro_batch == expected
    assert plan.accumulation * plan.world * plan.train.micro_batch == plan.train.batch_size


def test_gpu_count_is_the_number_of_ranks_on_the_cpu(root):
    plan = resolve("none", root, "pocket", gpus=4)
    assert (plan.world, plan.device, plan.train.micro_batch) == (4, "cpu", 2)
    assert plan.hardware.gpu is None
    assert plan.hardware.num_gpus == 0


def test_uneven_ranks_are_refused_with_a_number_that_fits(root):
    with pytest.raises(UsageError, match="--gpus 2"):
        resolve("none", root, "pocket", gpus=3)
    with pytest.raises(UsageError, match="expected 1 to 8"):
        resolve("none", root, "pocket", gpus=0)


@pytest.mark.parametrize(
    ("machine", "flag", "dtype", "reason"),
    [
        ("b200x8", None, "fp8", "the default of B200 (compute capability 10.0)"),
        ("b200x8", "bf16", "bf16", "named with --dtype"),
        ("b200x8", "nvfp4", "nvfp4", "named with --dtype"),
        ("h100x8", "fp8", "fp8", "named with --dtype"),
    ],
)
def test_explicit_dtype_wins(machine, flag, dtype, reason, root):
    plan = resolve(machine, root, "super", dtype=flag)
    assert (plan.dtype, plan.train.dtype, plan.dtype_reason) == (dtype, dtype, reason)


def test_dtype_of_the_configuration_counts_as_named(root):
    plan = resolve("b200x8", root, "super", overrides=["train.dtype=bf16"])
    assert plan.dtype == "bf16"
    assert "--set" in plan.dtype_reason


@pytest.mark.parametrize(
    ("machine", "preset", "dtype"),
    [("h100x8", "super", "nvfp4"), ("none", "pocket", "fp8"), ("h100x8", "super", "fp32")],
)
def test_dtype_is_refused_when_the_machine_cannot(machine, preset, dtype, root):
    with pytest.raises(MachineError, match=f"cannot train in {dtype}: expected"):
        resolve(machine, root, preset, dtype=dtype)


def test_unknown_preset_names_the_nearest(root):
    with pytest.raises(UsageError, match=re.escape("unknown preset 'supr'. Did you mean")):
        resolve("none", root, "supr")
    with pytest.raises(UsageError, match="Known: dense, moe, pocket, super, ultra"):
        resolve("none", root, "[/bold]")


def test_flags_win_over_the_preset(root, tmp_path):
    plan = resolve(
        "none", root, "pocket", steps=7, seed=9, data=tmp_path, overrides=["train.steps=5"]
    )
    assert (plan.train.steps, plan.train.seed) == (7, 9)
    assert plan.data.data_path == str(tmp_path)
    assert plan.data.task == "custom"


def test_bad_override_is_a_config_error(root):
    with pytest.raises(ConfigError, match='unknown key "n_expert"'):
        resolve("none", root, "pocket", overrides=["experts.n_expert=4"])


def test_toml_path_names_a_run_that_a_folder_can_carry(root, tmp_path):
    path = tmp_path / "[bold] my.config.toml"
    path.write_text((planner.PRESETS / "pocket.toml").read_text())
    plan = resolve("none", root, str(path))
    assert re.fullmatch(r"bold-my\.config-\d{8}-\d{6}-[0-9a-f]{4}", plan.run_id)
    assert root.run(plan.run_id).run_id == plan.run_id


def test_plan_survives_its_file(root, tmp_path):
    plan = resolve("b200x8", root)
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json") == plan


def test_plan_holds_what_it_depends_on(root):
    plan = resolve("h100x8", root)
    assert plan.digests.constraints
    assert len(plan.digests.config) == 64
    assert plan.digests.data is None
    assert plan.digests.bundle is None
    assert plan.hardware.peak_tflops == 989.4
    assert {"python", "torch"} <= plan.versions.keys()


def test_cuda_build_of_torch_names_what_it_brings(monkeypatch, root):
    installed = {"torch": "2.13.0+cu130", "nvidia-cudnn-cu13": "9.15.1", "triton": "3.7.1"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = planner.resolve(preset="pocket", detection=detect(), root=root).versions

    assert (versions["cuda"], versions["cudnn"]) == ("13.0", "9.15.1")
    assert "nccl" not in versions
    installed["torch"] = "2.13.0+cpu"
    assert "cuda" not in planner.resolve(preset="pocket", detection=detect(), root=root).versions


def test_plan_holds_the_data_digest_once_the_data_is_prepared(root):
    for split in ("train", "val"):
        write_dataset(root.dataset("speedrun") / split)
    before = resolve("h100x8", root).digests.data
    write_dataset(root.dataset("speedrun") / "val", sha256="b" * 64)
    after = resolve("h100x8", root).digests.data
    assert before
    assert after
    assert before != after


def test_presets_are_the_ones_of_the_contract():
    assert planner.preset_names() == PRESETS


@pytest.mark.parametrize(
    ("preset", "experts", "top_k", "shared", "warmup", "steps", "bias", "aux"),
    [
        ("dense", 0, 0, 0, 256, 50_000, 0.0, 0.0),
        ("moe", 64, 6, 2, 256, 50_000, 1e-4, 0.0),
        ("super", 256, 7, 1, 880, 12_000, 1e-3, 1e-3),
        ("ultra", 4096, 7, 1, 256, 100_000, 1e-4, 0.0),
    ],
)
def test_official_preset_says_what_the_rules_say(
    preset, experts, top_k, shared, warmup, steps, bias, aux
):
    config = read_config(planner.PRESETS / f"{preset}.toml")
    assert config.train.batch_size * config.train.seq_len == 524_288
    assert (config.validation.every, config.validation.windows) == (128, 5120)
    assert config.target.target_loss == 3.28
    assert (config.model.dim, config.model.num_layers, config.model.num_heads) == (768, 12, 12)
    assert (config.attention.attn, config.attention.rope_theta) == ("sdpa", 50_000)
    mixture = config.experts
    assert (mixture.num_experts, mixture.top_k, mixture.num_shared) == (experts, top_k, shared)
    assert (mixture.bias_rate, mixture.aux_coef) == (bias, aux)
    assert (config.schedule.warmup_steps, config.train.steps) == (warmup, steps)


def test_ultra_has_as_many_parameters_as_published():
    config = read_config(planner.PRESETS / "ultra.toml")
    assert count_parameters(config, 50_304).total == pytest.approx(43.6e9, rel=2e-3)


@pytest.mark.parametrize("name", ["moonlet", "moonlight"])
def test_research_configuration_resolves_on_gpus(name, root):
    plan = resolve("h100x8", root, str(REPO_ROOT / "configs" / f"{name}.toml"))
    assert plan.dtype == "bf16"
    assert plan.attention.attn == "mla"
    assert (plan.experts.num_experts, plan.experts.top_k, plan.experts.num_shared) == (64, 6, 2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("machine", [path.stem for path in sorted(SCENARIOS.glob("*.json"))])
def test_every_machine_gets_a_plan_or_a_refusal_with_a_fix(machine, preset, root):
    can_train = machine in TRAINING_MACHINES or (preset == "pocket" and machine != "two_nodes")
    if can_train:
        plan = resolve(machine, root, preset)
        assert plan.hardware.is_fake
        return
    with pytest.raises(MachineError) as refusal:
        resolve(machine, root, preset)
    assert refusal.value.fix


def write_mixture(root: DataRoot) -> tuple[str, ...]:
    """A mixture of two byte datasets in the data root; the overrides that choose it."""
    text = 'tokenizer = "byte"\n[sources.code]\npath = "code"\n[sources.docs]\npath = "docs"\n'
    (root.path / "mixture.toml").write_text(text)
    for name in ("code", "docs"):
        write_dataset(root.path / name)
        (root.path / name / "shard_00000.npy").write_bytes(bytes(2128))
    mixture = f"data.mixture_toml={root.path / 'mixture.toml'}"
    return "data.flow_mode=mixture", mixture, "data.data_path=mixed"


def test_mixture_is_planned_once_and_is_part_of_the_data_digest(root):
    overrides = write_mixture(root)
    before = resolve("none", root, "pocket", overrides=overrides)
    write_dataset(root.path / "mixed" / "val")
    plan = resolve("none", root, "pocket", overrides=overrides)

    assert plan.flow is not None
    assert plan.flow == before.flow
    assert [stage.quotas for stage in plan.flow.stages] == [(24_000, 24_000)]
    assert (before.digests.data, plan.digests.data is None) == (None, False)
    assert plan.data.task == "custom"  # other text than the preset's: ranked apart
    rows = [line for line in tables.plan_lines(plan, root) if line.startswith("stage")]
    assert rows == [rows[0]]
    assert "code 50.0 % (3428.57 epochs), docs 50.0 % (3428.57 epochs)" in rows[0]


def test_mixture_whose_validation_is_missing_is_a_problem_and_its_sources_are_not(root):
    plan = resolve("none", root, "pocket", overrides=write_mixture(root))

    (problem,) = dataset.problems(plan, root)
    assert str(root.path / "mixed" / "val") in problem.what
    assert problem.exit_code == 4


def test_mixture_is_refused_when_a_source_is_missing(root):
    overrides = write_mixture(root)
    (root.path / "docs" / "manifest.json").unlink()

    with pytest.raises(DataError, match="no dataset in .*docs"):
        resolve("none", root, "pocket", overrides=overrides)
