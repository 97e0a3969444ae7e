"""The Wan codecs in diffusers' layout (`AutoencoderKLWan`), both ways.

Letters of the layouts: o out, i in, t h w the kernel, c channels. Our stages
have one naming; diffusers' has one per codec: a flat list of down blocks in
2.1, nested ones in 2.2.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.table import Entry, Family
from wallwm_jax.models.wan_vae import WanVAE
from wallwm_jax.models.wan_vae_config import WAN_VAE_SIZES, WanVAEConfig
from wallwm_jax.models.wan_vae_layers import Stage

CONV = {"kernel": ("weight", "o i t h w -> t h w i o"), "bias": ("bias", "")}
PICTURE_CONV = {"kernel": ("weight", "o i h w -> h w i o"), "bias": ("bias", "")}
TIME_CONV = {"kernel": ("weight", "o i t 1 1 -> t i o"), "bias": ("bias", "")}
POINT = {"kernel": ("weight", "o i 1 1 1 -> i o"), "bias": ("bias", "")}
PICTURE_POINT = {"kernel": ("weight", "o i 1 1 -> i o"), "bias": ("bias", "")}
NORM = {"scale": ("gamma", "c 1 1 1 -> c")}
PICTURE_NORM = {"scale": ("gamma", "c 1 1 -> c")}
"""What a part of the model holds: our leaf -> (suffix of their tensor, layout)."""

Part = tuple[str, str, dict[str, tuple[str, str]]]
"""Our path, their name, what it holds."""


def _residual_block(ours: str, theirs: str, shortcut: bool = False) -> Iterator[Part]:
    for name, tensors in (("norm1", NORM), ("conv1", CONV), ("norm2", NORM), ("conv2", CONV)):
        yield f"{ours}/{name}", f"{theirs}.{name}", tensors
    if shortcut:
        yield f"{ours}/shortcut", f"{theirs}.conv_shortcut", POINT


def _attention(ours: str, theirs: str) -> Iterator[Part]:
    yield f"{ours}/norm", f"{theirs}.norm", PICTURE_NORM
    yield f"{ours}/qkv", f"{theirs}.to_qkv", PICTURE_POINT
    yield f"{ours}/out", f"{theirs}.proj", PICTURE_POINT


def _resample(ours: str, theirs: str, stage: Stage) -> Iterator[Part]:
    # 0 of their sequence pads or repeats pixels, 1 is the convolution.
    yield f"{ours}/space", f"{theirs}.resample.1", PICTURE_CONV
    if stage.time:
        yield f"{ours}/time", f"{theirs}.time_conv", TIME_CONV


def _down_stages(c: WanVAEConfig) -> Iterator[Part]:
    theirs = "encoder.down_blocks"
    flat = 0
    for i, stage in enumerate(c.encoder_stages):
        ours = f"encoder/stage_{i}"
        for block in range(stage.blocks):
            widens = block == 0 and stage.inputs != stage.width
            place = f"{i}.resnets.{block}" if c.residual else f"{flat}"
            yield from _residual_block(f"{ours}/block_{block}", f"{theirs}.{place}", widens)
            flat += 1
        if stage.space:
            place = f"{i}.downsampler" if c.residual else f"{flat}"
            yield from _resample(f"{ours}/resample", f"{theirs}.{place}", stage)
            flat += 1


def _up_stages(c: WanVAEConfig) -> Iterator[Part]:
    for i, stage in enumerate(c.decoder_stages):
        ours, theirs = f"decoder/stage_{i}", f"decoder.up_blocks.{i}"
        for block in range(stage.blocks):
            widens = block == 0 and stage.inputs != stage.width
            yield from _residual_block(f"{ours}/block_{block}", f"{theirs}.resnets.{block}", widens)
        if stage.space:
            place = "upsampler" if c.residual else "upsamplers.0"
            yield from _resample(f"{ours}/resample", f"{theirs}.{place}", stage)


def _parts(c: WanVAEConfig) -> Iterator[Part]:
    for side in ("encoder", "decoder"):
        yield f"{side}/conv_in", f"{side}.conv_in", CONV
        yield from _residual_block(f"{side}/middle_0", f"{side}.mid_block.resnets.0")
        yield from _attention(f"{side}/middle_attention", f"{side}.mid_block.attentions.0")
        yield from _residual_block(f"{side}/middle_1", f"{side}.mid_block.resnets.1")
        yield f"{side}/head/norm", f"{side}.norm_out", NORM
        yield f"{side}/head/conv", f"{side}.conv_out", CONV
    yield from _down_stages(c)
    yield from _up_stages(c)
    yield "quant", "quant_conv", POINT
    yield "post_quant", "post_quant_conv", POINT


def table(module: nn.Module) -> list[Entry]:
    """Entries of every parameter of a `WanVAE`."""
    return [
        Entry(f"{ours}/{leaf}", f"{theirs}.{suffix}", layout)
        for ours, theirs, tensors in _parts(module.config)
        for leaf, (suffix, layout) in tensors.items()
    ]


def example(module: nn.Module) -> tuple[Any, ...]:
    """The shape of the smallest clip: one frame already reaches every parameter."""
    c = module.config
    side, colours = c.space_factor, c.in_channels // c.patch**2
    return (jax.ShapeDtypeStruct((1, 1, side, side, colours), jnp.float32),)


PUBLISHED = WAN_VAE_SIZES["wan2.1"]

FIELDS: dict[str, tuple[str, Any, Any]] = {
    "base_dim": ("encoder_width", int, 96),
    "decoder_base_dim": ("decoder_width", int, None),
    "z_dim": ("latent_channels", int, 16),
    "dim_mult": ("multipliers", (int,), (1, 2, 4, 4)),
    "num_res_blocks": ("blocks", int, 2),
    "temperal_downsample": ("time", (bool,), (False, True, True)),
    "dropout": ("dropout", float, 0.0),
    "latents_mean": ("latent_mean", (float,), PUBLISHED["latent_mean"]),
    "latents_std": ("latent_std", (float,), PUBLISHED["latent_std"]),
    "is_residual": ("residual", bool, False),
    "in_channels": ("in_channels", int, 3),
    "out_channels": ("out_channels", int, 3),
    "patch_size": ("patch", int, None),
    "scale_factor_temporal": ("time_factor", int, None),
    "scale_factor_spatial": ("space_factor", int, None),
}
"""diffusers' key -> (our field, its kind, what a file without the key means)."""

OPTIONAL = (
    "decoder_base_dim",
    "latents_mean",
    "latents_std",
    "patch_size",
    "scale_factor_temporal",
    "scale_factor_spatial",
)
"""Keys that may be null."""

DERIVED = ("scale_factor_temporal", "scale_factor_spatial")
"""Keys that repeat what others say. Not believed where they say otherwise: they
keep diffusers' defaults in small models, and enter no encoding or decoding."""

WITHOUT_MEANING = ("clip_output",)
"""Keys of published configs that no version of the model reads."""


def _value(key: str, value: Any) -> Any:
    """A value of config.json as its field takes it: lists as tuples, 0 as 0.0 where that is meant."""
    kind = FIELDS[key][1]
    if value is None and key in OPTIONAL:
        return None
    one, several = (kind[0], True) if isinstance(kind, tuple) else (kind, False)
    items = value if several else [value]
    fits = (int, float) if one is float else one
    alike = isinstance(items, (list, tuple)) and all(
        isinstance(item, fits) and (one is bool or not isinstance(item, bool)) for item in items
    )
    if not alike:
        expected = f"a list of {one.__name__}" if several else one.__name__
        raise ConvertError(f"config.json: {key} is {value!r}; it must be {expected}")
    return tuple(map(one, items)) if several else one(value)


def read_config(config: dict[str, Any], dtype: str) -> WanVAE:
    """A `WanVAE` of the sizes in a diffusers config.

    Raises:
      ConvertError: a key or value that the codec does not implement.
    """
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in WITHOUT_MEANING}
    attention = given.pop("attn_scales", [])
    strange = sorted(set(given) - set(FIELDS))
    if strange:
        raise ConvertError(
            f"config.json: AutoencoderKLWan has the key {strange[0]!r} that this version does not "
            f"implement; known are {', '.join(sorted(FIELDS))}"
        )
    values = {key: _value(key, given.get(key, default)) for key, (_, _, default) in FIELDS.items()}
    if attention:
        raise ConvertError(
            f"config.json: attn_scales is {attention!r}; attention inside the stages is not "
            "implemented (diffusers cannot run it either)"
        )
    values["decoder_base_dim"] = values["decoder_base_dim"] or values["base_dim"]
    values["patch_size"] = values["patch_size"] or 1
    sizes = {FIELDS[key][0]: value for key, value in values.items() if key not in DERIVED}
    try:
        ours = WanVAEConfig(**sizes, dtype=dtype, param_dtype=dtype)
    except ValueError as error:
        raise ConvertError(f"config.json: {error}") from error
    return WanVAE(ours)


def write_config(module: nn.Module) -> dict[str, Any]:
    """The diffusers config of a `WanVAE`."""
    values = {key: getattr(module.config, ours) for key, (ours, _, _) in FIELDS.items()}
    if values["decoder_base_dim"] == values["base_dim"]:
        values["decoder_base_dim"] = None
    # diffusers compares with None to tell whether there are patches at all.
    values["patch_size"] = None if values["patch_size"] == 1 else values["patch_size"]
    values["attn_scales"] = []
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


FAMILY = Family(
    name="AutoencoderKLWan",
    weights="diffusion_pytorch_model",
    read_config=read_config,
    write_config=write_config,
    example=example,
    table=table,
)
