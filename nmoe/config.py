"""Frozen configuration: sections, Config (a TOML file), Plan (its full resolution for one run)."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from nmoe.flow import Flow
from nmoe.schema import ConfigError, apply_override, build

# Up to this many ranks there is room for the rows of all tokens of all ranks. On more it would take
# most of the memory, and 1.5 times the mean is hardly ever exceeded: see `nmoe.rdep`.
WORST_CASE_RANKS = 2
Dtype = Literal["fp32", "bf16", "fp8", "nvfp4"]
Impl = Literal["reference", "triton"]
Device = Literal["cpu", "cuda"]
# Files that [data] names, and all its paths.
DATA_FILES = ("mixture_toml", "flow_profiles_toml")
DATA_PATHS = ("data_path", *DATA_FILES)
AttentionName = Literal["sdpa", "mla", "swa", "nsa", "dsa", "kda"]
Activation = Literal["swiglu", "relu_squared", "squared_reglu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The transformer's shape; a dense layer's feed-forward is `dense_hidden` wide.

    The embedding is drawn with `embedding_std` and read times `embedding_scale`: a small table that
    is scaled up learns faster at the same rate.
    """

    dim: int
    num_layers: int
    num_heads: int
    dense_hidden: int
    embedding_std: float = 1.0
    embedding_scale: float = 1.0
    norm_eps: float = 1e-6
    impl: Impl = "triton"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention by layer: global ones use `attn`, the others `attn_local` with its window."""

    attn: AttentionName = "sdpa"
    attn_local: AttentionName = "swa"
    attn_global_every: int = 1
    attn_local_window: int = 1024
    rope_theta: float = 50_000.0
    qk_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The MoE layers: `num_experts = 0` makes every layer dense."""

    num_experts: int
    top_k: int
    num_shared: int
    hidden: int
    num_dense_layers: int = 0
    activation: Activation = "swiglu"
    bias_rate: float = 1e-3
    aux_coef: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is read: `data_path`, absolute or below the data root, holds `train` and `val`.

    With a mixture it holds `val` and a folder a source. `flow_mode` is "none" (one dataset),
    "mixture" (one stage) or a profile of `flow_profiles_toml`. Paths of files are relative to the
    file that names them.
    """

    task: str
    tokenizer: str
    data_path: str
    bundle: str
    flow_mode: str = "none"
    mixture_toml: str = ""
    flow_profiles_toml: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """Optimizer by parameter group; `clip = 0` means no clipping.

    `muon` takes the matrices of attention, feed-forward and experts, AdamW the rest or everything.
    """

    matrices: Literal["adamw", "muon"] = "adamw"
    lr_muon: float = 0.02
    momentum: float = 0.95
    lr_dense: float
    lr_router: float
    lr_expert: float
    beta1: float = 0.9
    beta2: float = 0.95
    beta2_expert: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    weight_decay_router: float = 0.0
    clip: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up in steps, then hold and decay in tokens down to `floor` times the peak."""

    warmup_steps: int
    hold_tokens: int
    decay_tokens: int = 0
    decay: Literal["linear", "cosine"] = "linear"
    floor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """One step takes `batch_size` sequences over all ranks, `micro_batch` at a time on each."""

    steps: int
    batch_size: int
    seq_len: int
    micro_batch: int
    dtype: Dtype | Literal["auto"] = "auto"
    seed: int = 1337
    deterministic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Something that happens every so many steps; 0 means never."""

    every: int

    def is_due(self, step: int) -> bool:
        """Whether it happens after `step` finished steps."""
        return self.every > 0 and step % self.every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Every):
    """Step events, metrics and the moments when control requests are honoured."""

    every: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation(Every):
    """Validation on the first `windows` windows of `seq_len + 1` validation tokens."""

    every: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Every):
    """Checkpoints every so many steps, the newest `keep` of them."""

    every: int
    keep: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval(Every):
    """CORE after the target on `cap` items a task at the most, 0 for all.

    Also `every` so many steps while training goes on, off the clock, on `interim_cap` items a task.
    """

    every: int = 0
    cap: int = 0
    interim_cap: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The validation loss, in nats a token, that ends the race; a fixed horizon asks at its end."""

    target_loss: float
    stop_rule: Literal["first_crossing", "fixed_horizon"] = "first_crossing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One TOML file: what to train, before any machine is known."""

    preset: str
    model: Model
    attention: Attention = Attention()
    experts: Experts
    data: Data
    optim: Optim
    schedule: Schedule
    train: Train
    log: Log = Log()
    validation: Validation
    checkpoint: Checkpoint
    eval: Eval = Eval()
    target: Target

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine a plan was made for: GPUs, or the CPU when there is none; None is unknown."""

    gpu: str | None = None
    num_gpus: int = 0
    capability: str | None = None
    memory_bytes: int | None = None
    peak_tflops: float | None = None
    driver: str | None = None
    vbios: str | None = None
    is_ecc: bool | None = None
    is_mig: bool | None = None
    cpu: str = ""
    cores: int = 0
    is_fake: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """What the result depends on: sha256 of config, data, constraints; the commit of the code."""

    config: str
    constraints: str | None = None
    data: str | None = None
    bundle: str | None = None
    commit: str | None = None
    is_dirty: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Config):
    """A config with every value resolved for one run on one machine; never changed once written."""

    run_id: str
    created: str
    world: int
    device: Device
    dtype: Dtype
    dtype_reason: str
    choice: str
    hardware: Hardware
    digests: Digests
    flow: Flow | None = None
    versions: dict[str, str] = field(default_factory=dict)
    series: str | None = None  # the repeats that the run belongs to

    def __post_init__(self) -> None:
        check(self)
        if self.world < 1:
            raise ConfigError(f"world: got {self.world}, expected 1 rank or more")
        per_pass = self.world * self.train.micro_batch
        if self.train.batch_size % per_pass:
            raise ConfigError(
                f"[train] batch_size: got {self.train.batch_size}, expected a multiple of"
                f" {self.world} ranks x micro_batch {self.train.micro_batch}. Change micro_batch."
            )
        if self.experts.num_experts % self.world:
            raise ConfigError(
                f"[experts] num_experts: got {self.experts.num_experts}, expected a multiple of"
                f" {self.world} ranks. Use a number of ranks that divides it."
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank runs for one step."""
        return self.train.batch_size // (self.world * self.train.micro_batch)

    def to_json(self) -> str:
        """The whole plan as readable JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=False) + "\n"


def read_config(path: Path, *, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides; ConfigError when it is unusable."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file not found: {path}. Name an existing TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read as TOML: {error}") from None
    raw.setdefault("preset", path.stem)
    _make_absolute(raw, path.parent)
    for override in overrides:
        apply_override(raw, override)
    _make_absolute(raw, Path())
    return build(Config, raw, where=path.name)


def read_plan(path: Path) -> Plan:
    """Read plan.json; ConfigError when it is missing or does not hold a plan."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no plan at {path}: this is not a run folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a plan: {error}") from None
    return build(Plan, raw, where=str(path))


def config_digest(config: Config) -> str:
    """sha256 over the recipe, without seed, steps and stop rule, micro-batches, logging, paths.

    What a mixture's files say is in the digest of the flow.
    """
    sections = {
        f.name: asdict(getattr(config, f.name)) for f in fields(Config) if f.name != "preset"
    }
    del sections["log"], sections["checkpoint"], sections["target"]["stop_rule"]
    for name in ("seed", "steps", "micro_batch"):
        del sections["train"][name]
    for name in ("every", "interim_cap"):
        del sections["eval"][name]
    for name in DATA_PATHS:
        del sections["data"][name]
    text = json.dumps(sections, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_train(config: Config, **changes: Any) -> Config:
    """The config with some [train] values replaced."""
    return replace(config, train=replace(config.train, **changes))


def check(config: Config) -> None:
    """Refuse values that contradict each other; raises ConfigError."""
    model, experts, train, data = config.model, config.experts, config.train, config.data
    has_profile = data.flow_mode not in ("none", "mixture")
    rules = (
        (
            min(model.dim, model.num_layers, model.num_heads) > 0,
            "[model] dim, num_layers and num_heads must be positive",
        ),
        (model.dim % max(1, model.num_heads) == 0, "[model] dim must be a multiple of num_heads"),
        ((model.dim // max(1, model.num_heads)) % 2 == 0, "[model] head size must be even"),
        (
            experts.num_experts == 0 or 0 < experts.top_k <= experts.num_experts,
            "[experts] top_k must be between 1 and num_experts",
        ),
        (
            0 <= experts.num_dense_layers <= model.num_layers,
            "[experts] num_dense_layers must be between 0 and num_layers",
        ),
        (train.steps > 0, "[train] steps must be positive"),
        (train.batch_size > 0 and train.micro_batch > 0, "[train] batch sizes must be positive"),
        (train.seq_len > 0, "[train] seq_len must be positive"),
        (train.seed >= 0, "[train] seed must not be negative"),
        (
            bool(data.mixture_toml) == (data.flow_mode != "none"),
            f'[data] mixture_toml: got "{data.mixture_toml}" with flow_mode = "{data.flow_mode}";'
            ' flow_mode "none" reads no mixture, any other reads one',
        ),
        (
            bool(data.flow_profiles_toml) or not has_profile,
            f'[data] flow_mode: got "{data.flow_mode}", which is neither "none" nor "mixture";'
            " flow_profiles_toml must name the file with that profile",
        ),
        (config.log.every > 0, "[log] every must be positive"),
        (config.validation.windows > 0, "[validation] windows must be positive"),
        (config.checkpoint.keep > 0, "[checkpoint] keep must be positive"),
        (
            min(config.eval.every, config.eval.cap, config.eval.interim_cap) >= 0,
            "[eval] every, cap and interim_cap must not be negative",
        ),
        (config.target.target_loss > 0, "[target] target_loss must be positive"),
        (config.optim.eps > 0, "[optim] eps must be positive"),
        (config.schedule.warmup_steps >= 0, "[schedule] warmup_steps must not be negative"),
    )
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)


def _make_absolute(raw: dict[str, Any], folder: Path) -> None:
    """Files that [data] names, which are relative to `folder`."""
    data = raw.get("data")
    for name in DATA_FILES:
        if isinstance(data, dict) and isinstance(data.get(name), str) and data[name]:
            data[name] = str((folder / data[name]).absolute())
