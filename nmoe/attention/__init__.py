"""Attention variants by name: the one registry."""

from torch import nn

from nmoe.attention.sdpa import SdpaAttention
from nmoe.config import AttentionName, Config, ConfigError

BUILT: dict[str, type[nn.Module]] = {"sdpa": SdpaAttention}


def attention_name(config: Config, layer: int) -> AttentionName:
    """The variant of `layer`: global every so many layers and in the last one, local otherwise."""
    attention = config.attention
    is_last = layer == config.model.num_layers - 1
    if is_last or (layer + 1) % attention.attn_global_every == 0:
        return attention.attn
    return attention.attn_local


def build_attention(config: Config, layer: int) -> nn.Module:
    """The attention module of `layer`; ConfigError for a variant that is not built."""
    name = attention_name(config, layer)
    if name not in BUILT:
        raise ConfigError(
            f"attention {name!r} is not built yet, this version has {', '.join(BUILT)}."
            " Set attention.attn and attention.attn_local to one of these."
        )
    return BUILT[name](config)
