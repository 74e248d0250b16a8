"""Real runs of a preset on random tokens: what a bench of the whole step trains.

Nothing of the trainer is copied: `nmoe.build.build` makes the run and `nmoe.train` steps it. Only
the draw of the weights is another: all are normal, those that begin at zero too, so that no product
of zeros is timed, and on the device, where it takes no time.

Without a GPU every preset shrinks to a size that the reference trains in milliseconds.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from nmoe import build as building
from nmoe import dist
from nmoe.build import Run, build, close
from nmoe.config import Plan
from nmoe.control import Control
from nmoe.data.manifest import Manifest, write_manifest
from nmoe.data.shards import ShardWriter, shard_name, token_dtype
from nmoe.model import Transformer
from nmoe.paths import REPO_ROOT, DataRoot
from nmoe.report import Reporter
from nmoe.standalone import create_folder, make_plan

PRESETS = ("super", "dense", "moe", "ultra")
# Layers of `ultra` for each GPU: 3.62 billion parameters each, 16 bytes a parameter.
LAYERS_PER_GPU = {"ultra": 1}
# What makes a preset as small as it can be with a layer of each kind that it has.
SMALLEST = {
    "super": ("model.num_layers=1",),
    "dense": ("model.num_layers=1", "experts.num_dense_layers=1"),
    "moe": ("model.num_layers=2",),
}
WINDOWS = 8192  # of random tokens to train on: no epoch ends in so many steps
VOCABULARY, EOS = {"cuda": 50_257, "cpu": 257}, "<|endoftext|>"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a machine trains: the official step on a GPU."""

    batch: int  # sequences of a step over all ranks
    micro_batch: int
    overrides: tuple[str, ...] = ()


OFFICIAL = Size(batch=256, micro_batch=32, overrides=("train.dtype=bf16",))
TINY = Size(
    batch=8,
    micro_batch=2,
    overrides=(
        *("model.dim=32", "model.num_layers=2", "model.num_heads=2", "model.dense_hidden=64"),
        *("model.impl=reference", "train.dtype=fp32", "train.seq_len=32"),
    ),
)
TINY_EXPERTS = ("experts.num_experts=8", "experts.top_k=2", "experts.hidden=32")


def size_for(device: str, micro_batch: int | None = None) -> Size:
    """The official step, or the tiny one of a CPU."""
    size = OFFICIAL if device == "cuda" else TINY
    return size if micro_batch is None else replace(size, micro_batch=micro_batch)


def preset_file(preset: str) -> Path:
    """The TOML file of a preset."""
    return REPO_ROOT / "configs" / "speedrun" / f"{preset}.toml"


def layers_of(preset: str, device: str, *, gpus: int) -> int | None:
    """To how many layers a preset is reduced on this machine; None when it is whole."""
    if device != "cuda" or preset not in LAYERS_PER_GPU:
        return None
    return LAYERS_PER_GPU[preset] * gpus


def plan_of(
    preset: str, folder: Path, size: Size, *, device: str, world: dist.World, more: tuple[str, ...]
) -> Plan:
    """The preset's plan on the synthetic data of `folder`."""
    overrides = [
        *size.overrides,
        f"train.batch_size={size.batch}",
        f"train.micro_batch={size.micro_batch}",
        f"validation.windows={size.micro_batch}",
        f"data.data_path={folder / 'data'}",
        f"data.tokenizer={folder / 'vocabulary.json' if device == 'cuda' else 'byte'}",
    ]
    if device == "cpu" and preset != "dense":
        overrides += TINY_EXPERTS
    if (layers := layers_of(preset, device, gpus=world.size)) is not None:
        overrides.append(f"model.num_layers={layers}")
    if device == "cpu" and preset == "dense":
        overrides.append("experts.num_dense_layers=2")
    return make_plan(preset_file(preset), overrides=[*overrides, *more], world=world)


def write_data(folder: Path, size: Size, *, device: str) -> None:
    """A vocabulary and datasets of random tokens, by the writers of real ones."""
    vocab_size, seq_len = VOCABULARY[device], 2048 if device == "cuda" else 32
    if device == "cuda":
        write_vocabulary(folder / "vocabulary.json", vocab_size)
    rng = np.random.default_rng(0)
    for split, windows in (("train", WINDOWS), ("val", size.micro_batch)):
        place = folder / "data" / split
        place.mkdir(parents=True)
        tokens = rng.integers(0, vocab_size, windows * (seq_len + 1))
        writer = ShardWriter(place, 0, dtype=token_dtype(vocab_size))
        writer.append(tokens)
        shard = writer.close()
        assert shard.name == shard_name(0)
        write_manifest(
            place,
            Manifest(
                name=f"random-{split}",
                source="random",
                revision="",
                tokenizer="random",
                vocab_size=vocab_size,
                eos_id=vocab_size - 1,
                total_tokens=shard.tokens,
                num_docs=1,
                text_bytes=shard.tokens,
                shards=(shard,),
            ),
        )


def write_vocabulary(path: Path, vocab_size: int) -> None:
    """As many words as there are tokens, and the end of a text: no text is ever encoded."""
    words = {f"t{number}": number for number in range(vocab_size - 1)}
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    record = {
        "version": "1.0",
        "added_tokens": [{"id": vocab_size - 1, "content": EOS, "special": True, **special}],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"), None),
        **dict.fromkeys(("post_processor", "decoder"), None),
    }
    path.write_text(json.dumps(record))


@contextmanager
def opened(plan: Plan, folder: Path, *, world: dist.World, say: Say) -> Iterator[Run]:
    """The run of a plan, its clock started; closed behind."""
    root = DataRoot(path=folder, reason="bench")
    place = root.run(plan.run_id)
    if world.is_main:
        create_folder(plan, place)
    dist.barrier()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        control = Control(place, supervisor_fd=None)
    finally:  # whoever interrupts the bench means the bench
        for number, handler in before.items():
            signal.signal(number, handler)
    report = Reporter(place, plan, attempt=0, is_writer=world.is_main, say=say)
    with mock.patch.object(building, "init_weights", draw_weights):
        run = build(plan, place, root, world=world, control=control, report=report)
    try:
        run.clock.start()
        run.meter.restart(train_s=run.clock.train_s)
        yield run
    finally:
        close(run)


@torch.no_grad()
def draw_weights(model: Transformer, *, seed: int) -> None:
    """Matrices normal with fan_in ** -0.5, alike on all ranks but for experts; vectors one."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in model.named_parameters():
        device = parameter.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        is_expert = ".experts." in name
        fan_in = parameter.shape[-2 if is_expert else -1]
        is_table = name == "embedding.weight"
        std = model.embedding_std if is_table else fan_in**-0.5
        parameter.normal_(std=std, generator=generator)
    for _, layer in model.moe_layers():
        layer.experts.refresh()
