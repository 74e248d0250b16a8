"""Mixture and flow-profile files, and the flow of a run: quotas computed once, in whole windows.

A mixture (TOML) names its sources; a file of profiles cuts a run into stages:

    tokenizer = "gpt2"                  [[two_stage]]
    temperature = 2.0                   name = "broad"
    [sources.web]                       tokens = 9_000_000_000
    source = "parquet"                  [[two_stage]]
    dataset = "corpora/web"             name = "anneal"
    [sources.math]                      weights = { web = 1, math = 3 }
    path = "prepared/math"

Standard library only, so that everything around a run can make its plan.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from nmoe.config import Config
from nmoe.data.manifest import (
    MANIFEST_NAME,
    DataError,
    Manifest,
    digest,
    read_manifest,
    verify_sizes,
)
from nmoe.flow import Flow, FlowSource, Stage, apportion
from nmoe.paths import DataRoot
from nmoe.schema import ConfigError, nearest

VALIDATION = "val"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Beyond these an exact fraction would fill the memory.
SMALLEST, LARGEST = Decimal("1e-12"), Decimal("1e15")
# Sources that are paths of local files.
FILE_SOURCES = ("text", "jsonl", "parquet", "files")
# Options of `prep` that a source may set, with underscores.
PREP_KEYS = frozenset(
    {
        *("source", "dataset", "text_key", "max_tokens", "num_shards", "shard_tokens"),
        *("revision", "files", "exclude", "config", "split"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSource:
    """One entry of a mixture: a prepared dataset at `path`, or what `prep` is told to make it."""

    name: str
    path: str
    weight: Fraction | None
    prep: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture file; `validation` is prepared as `val` beside the sources, if the file has it."""

    file: Path
    tokenizer: str
    temperature: Fraction | None
    sources: tuple[MixtureSource, ...]
    validation: MixtureSource | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileStage:
    """A stage as a profile states it; without `tokens` it takes the rest of the run."""

    name: str
    tokens: int | None
    weights: dict[str, Fraction] | None
    temperature: Fraction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dataset:
    source: MixtureSource
    path: str
    manifest: Manifest


def read_mixture(file: Path) -> Mixture:
    """Read a mixture file; ConfigError names what is wrong in it."""
    raw = _read_toml(file)
    _known(raw, ("tokenizer", "temperature", "sources", "validation"), f"{file.name}:")
    tokenizer = raw.get("tokenizer")
    if not isinstance(tokenizer, str):
        raise ConfigError(f'{file.name}: tokenizer: got {tokenizer!r}, expected one such as "gpt2"')
    tables = raw.get("sources")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{file.name}: no sources. Add a table such as [sources.web].")
    sources = tuple(_source(name, table, f"{file.name}:") for name, table in tables.items())
    weighted = [source.name for source in sources if source.weight is not None]
    if weighted and ("temperature" in raw or len(weighted) != len(sources)):
        raise ConfigError(
            f"{file.name}: got a weight for {', '.join(weighted)}, expected one for every source"
            " and no temperature. Or leave out all weights: shares then follow the sizes."
        )
    validation = raw.get("validation")
    return Mixture(
        file=file,
        tokenizer=tokenizer,
        temperature=_optional(raw, "temperature", f"{file.name}:"),
        sources=sources,
        validation=None if validation is None else _validation(validation, f"{file.name}:"),
    )


def read_profile(file: Path, name: str) -> tuple[ProfileStage, ...]:
    """The stages of one profile; ConfigError names what is wrong in the file."""
    profiles = _read_toml(file)
    if name not in profiles:
        hint = nearest(name, list(profiles))
        raise ConfigError(f'{file.name}: no profile "{name}" for [data] flow_mode.{hint}')
    tables = profiles[name]
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{file.name}: {name} holds no stages. Write each as [[{name}]].")
    stages = tuple(_stage(raw, f"{file.name}: [[{name}]]") for raw in tables)
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise ConfigError(f"{file.name}: [[{name}]] names a stage twice: {', '.join(names)}")
    for stage in stages[:-1]:
        if stage.tokens is None:
            raise ConfigError(
                f"{file.name}: [[{name}]] {stage.name} has no tokens; only the last stage may take"
                " the rest of the run"
            )
    return stages


def make_flow(config: Config, root: DataRoot) -> Flow | None:
    """The flow of a run, None without a mixture; ConfigError, or DataError for missing data."""
    data, train = config.data, config.train
    if data.flow_mode == "none":
        return None
    mixture = read_mixture(Path(data.mixture_toml))
    stages: tuple[ProfileStage, ...] = (
        ProfileStage(name="mixture", tokens=None, weights=None, temperature=None),
    )
    if data.flow_mode != "mixture":
        stages = read_profile(Path(data.flow_profiles_toml), data.flow_mode)
    opened = [_open(mixture, source, config, root) for source in mixture.sources]
    _check_alike(mixture, opened, config.data.tokenizer)
    sources = tuple(
        FlowSource(
            name=each.source.name,
            path=each.path,
            digest=digest(each.manifest),
            windows=each.manifest.total_tokens // (train.seq_len + 1),
        )
        for each in opened
    )
    sizes = _windows(stages, config)
    quotas = [
        Stage(name=stage.name, quotas=tuple(apportion(size, _weights(stage, mixture, opened))))
        for stage, size in zip(stages, sizes, strict=True)
    ]
    content = {
        "sources": [[source.name, source.digest, source.windows] for source in sources],
        "stages": [[stage.name, stage.quotas] for stage in quotas],
    }
    text = json.dumps(content, separators=(",", ":"))
    return Flow(
        profile=data.flow_mode,
        sources=sources,
        stages=tuple(quotas),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def prep_words(mixture: Mixture, output: Path, root: DataRoot) -> dict[str, list[str]]:
    """The words behind `prep` that make each part; DataError for a prepared one that is missing.

    Paths of local files are below the data root.
    """
    made: dict[str, list[str]] = {}
    for part in (*mixture.sources, *([mixture.validation] if mixture.validation else [])):
        if part.path:
            read_manifest(root.below(part.path))
            continue
        words = made[part.name] = ["--output", str(output / part.name)]
        words += ["--name", f"{mixture.file.stem}-{part.name}", "--tokenizer", mixture.tokenizer]
        for key, value in part.prep.items():
            values = value if isinstance(value, list) else [value]
            if key == "dataset" and part.prep["source"] in FILE_SOURCES:
                values = [root.below(each) for each in values]
            words += [f"--{key.replace('_', '-')}", *map(str, values)]
    return made


def _windows(stages: Sequence[ProfileStage], config: Config) -> list[int]:
    """Windows of each stage; together exactly those of the run."""
    train = config.train
    windows, step_tokens = train.steps * train.batch_size, train.batch_size * train.seq_len
    tokens = [stage.tokens for stage in stages if stage.tokens is not None]
    is_open, run_tokens = stages[-1].tokens is None, windows * train.seq_len
    fits = sum(tokens) < run_tokens if is_open else abs(sum(tokens) - run_tokens) < step_tokens
    if not fits and is_open:
        raise ConfigError(
            f"stage {stages[-1].name} of {config.data.flow_mode} is never reached: the stages"
            f" before it hold {sum(tokens):,} tokens, the run trains on {run_tokens:,}."
            f" Set train.steps to {sum(tokens) // step_tokens + 1} or more."
        )
    if not fits:
        raise ConfigError(
            f"the stages of {config.data.flow_mode} hold {sum(tokens):,} tokens, the run trains on"
            f" {run_tokens:,}. Set train.steps to {-(-sum(tokens) // step_tokens)}, or leave out"
            " the tokens of the last stage, which then takes the rest."
        )
    ends = [sum(tokens[: i + 1]) // train.seq_len for i in range(len(stages) - 1)] + [windows]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for stage, size in zip(stages, sizes, strict=True):
        if size <= 0:
            raise ConfigError(
                f"stage {stage.name} of {config.data.flow_mode} holds no whole window: got"
                f" {stage.tokens} tokens, expected at least {train.seq_len}"
            )
    return sizes


def _weights(stage: ProfileStage, mixture: Mixture, opened: Sequence[_Dataset]) -> list[int]:
    """Whole numbers in proportion to the sources' shares of a stage, 0 for one it leaves out."""
    names = [source.name for source in mixture.sources]
    if stage.weights is not None:
        for name in stage.weights:
            if name not in names:
                raise ConfigError(
                    f'stage {stage.name}: {mixture.file.name} has no source "{name}".'
                    f"{nearest(name, names)}"
                )
        weights = [stage.weights.get(name, Fraction(0)) for name in names]
    elif stage.temperature is None and mixture.sources[0].weight is not None:
        weights = [source.weight or Fraction(0) for source in mixture.sources]
    else:
        # Decimal's ln and exp are correctly rounded: the same digits on every machine.
        temperature = stage.temperature or mixture.temperature or Fraction(1)
        power = Decimal(temperature.denominator) / Decimal(temperature.numerator)
        sizes = [Decimal(each.manifest.total_tokens) for each in opened]
        weights = [Fraction((power * (size / max(sizes)).ln()).exp()) for size in sizes]
    unit = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * unit) for weight in weights]


def _open(mixture: Mixture, source: MixtureSource, config: Config, root: DataRoot) -> _Dataset:
    """The prepared dataset of a source; DataError with the command that makes a missing one."""
    path = source.path or f"{config.data.data_path}/{source.name}"
    folder = root.below(path)
    if not source.path and not (folder / MANIFEST_NAME).exists():
        raise DataError(
            f"no dataset for source {source.name} of {mixture.file.name}: got no {MANIFEST_NAME} in"
            f" {folder}. Run: python -m nmoe.data.cli prep-mixture {mixture.file}"
            f" --output {root.below(config.data.data_path)}"
        )
    manifest = verify_sizes(folder)
    window = config.train.seq_len + 1
    if manifest.total_tokens < window:
        raise DataError(
            f"source {source.name} is too short: got {manifest.total_tokens} tokens in {folder},"
            f" expected at least {window} for one window. Prepare more text."
        )
    return _Dataset(source=source, path=path, manifest=manifest)


def _check_alike(mixture: Mixture, opened: Sequence[_Dataset], tokenizer: str) -> None:
    """DataError unless all sources hold tokens of one tokenizer, the run's."""
    first = opened[0].manifest
    for each in opened:
        found = each.manifest
        if found.tokenizer != tokenizer:
            raise DataError(
                f"source {each.source.name} of {mixture.file.name} holds tokens of another kind:"
                f" got {found.tokenizer}, expected {tokenizer}. Prepare it again with"
                f" --tokenizer {tokenizer}, or set data.tokenizer."
            )
        if (found.vocab_size, found.eos_id) != (first.vocab_size, first.eos_id):
            raise DataError(
                f"sources of {mixture.file.name} differ in their vocabularies:"
                f" {each.source.name} has {found.vocab_size} ids and EOS {found.eos_id},"
                f" {opened[0].source.name} has {first.vocab_size} and {first.eos_id}."
                " Prepare all with one tokenizer."
            )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal)
    except FileNotFoundError:
        raise ConfigError(f"file not found: {file}. Name an existing TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file.name}: cannot be read as TOML: {error}") from None


def _source(name: str, raw: object, where: str) -> MixtureSource:
    place = f"{where} [sources.{name}]"
    if not NAME.fullmatch(name) or name == VALIDATION:
        raise ConfigError(
            f"{place}: a source's folder is named like it: expected letters, digits, '.', '_', '-',"
            f' and not "{VALIDATION}"'
        )
    table = _known(raw, ("path", "weight", *PREP_KEYS), place)
    weight = _optional(table, "weight", place)
    path = table.get("path", "")
    if not isinstance(path, str) or bool(path) == bool(PREP_KEYS & table.keys()):
        raise ConfigError(
            f'{place}: expected either path = "folder of a prepared dataset", or source and dataset'
            " as `prep` takes them"
        )
    prep = {} if path else _prep(table, place)
    return MixtureSource(name=name, path=path, weight=weight, prep=prep)


def _validation(raw: object, where: str) -> MixtureSource:
    place = f"{where} [validation]"
    prep = _prep(_known(raw, tuple(PREP_KEYS), place), place)
    return MixtureSource(name=VALIDATION, path="", weight=None, prep=prep)


def _prep(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The options of `prep` in a table, `dataset` as a list of names."""
    prep = {key: value for key, value in table.items() if key in PREP_KEYS}
    if isinstance(prep.get("dataset"), str):
        prep["dataset"] = [prep["dataset"]]
    dataset = prep.get("dataset")
    is_list = isinstance(dataset, list) and all(isinstance(each, str) for each in dataset)
    if not dataset or not is_list or not isinstance(prep.get("source"), str):
        raise ConfigError(f'{place}: expected source = "parquet" (or another) and dataset = "…"')
    return prep


def _stage(raw: object, place: str) -> ProfileStage:
    table = _known(raw, ("name", "tokens", "weights", "temperature"), place)
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place}: a stage has no name: got {name!r}")
    place = f"{place} {name}"
    tokens = _optional(table, "tokens", place)
    if tokens is not None and tokens.denominator != 1:
        raise ConfigError(f"{place} tokens: got {tokens}, expected a whole number")
    weights = table.get("weights")
    if weights is not None:
        if not isinstance(weights, dict) or not weights or "temperature" in table:
            raise ConfigError(
                f"{place}: expected weights = {{ source = number, … }} or a temperature, not both"
            )
        weights = {
            key: _positive(each, f"{place}: weight of {key}") for key, each in weights.items()
        }
    return ProfileStage(
        name=name,
        tokens=None if tokens is None else int(tokens),
        weights=weights,
        temperature=_optional(table, "temperature", place),
    )


def _known(raw: object, names: Sequence[str], place: str) -> dict[str, Any]:
    """The table itself; ConfigError for a key that is not one of `names`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: got {type(raw).__name__}, expected a table")
    for key in raw:
        if key not in names:
            raise ConfigError(f'{place} unknown key "{key}".{nearest(key, list(names))}')
    return raw


def _optional(table: Mapping[str, Any], key: str, place: str) -> Fraction | None:
    return _positive(table[key], f"{place} {key}") if key in table else None


def _positive(value: Any, label: str) -> Fraction:
    """The exact value of a number; ConfigError unless it is above zero, and within reason."""
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    if not is_number or not Decimal(value).is_finite() or not SMALLEST <= value <= LARGEST:
        hint = " To leave a source out, leave out its entry." if "weight" in label else ""
        raise ConfigError(
            f"{label}: got {value}, expected a number above zero, at most 1e15.{hint}"
        )
    return Fraction(value)
