"""The Wan DiT in two layouts: diffusers' `WanTransformer3DModel` and Wan's own release.

Both hold the same tensors under different names, so one list of rows serves
both. Letters of the layouts: o out, i in, n heads, h head dimension, t p q the
patch, k rows of a modulation table, d width.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.table import LAYER, Entry, Family
from wallwm_jax.models.wan_config import WanConfig
from wallwm_jax.models.wan_dit import WanDiT

LINEAR = {"kernel": ("weight", "o i -> i o"), "bias": ("bias", "")}
TO_HEADS = {"kernel": ("weight", "(n h) i -> i n h"), "bias": ("bias", "(n h) -> n h")}
FROM_HEADS = {"kernel": ("weight", "o (n h) -> n h o"), "bias": ("bias", "")}
PATCHES = {"kernel": ("weight", "o i t p q -> (i t p q) o"), "bias": ("bias", "")}
LAYER_NORM = {"scale": ("weight", ""), "bias": ("bias", "")}
HEAD_NORM = {"scale": ("weight", "(n h) -> n h")}
TABLE = {"": ("", "1 k d -> k d")}
"""What a row stands for: our leaf -> (suffix of their tensor, layout)."""


class Row(NamedTuple):
    """A part of the model: our path, diffusers' name, Wan's own name, its tensors."""

    ours: str
    diffusers: str
    original: str
    tensors: dict[str, tuple[str, str]] = LINEAR


def _attention(ours: str, diffusers: str, original: str) -> list[Row]:
    return [
        Row(f"{ours}/query/linear", f"{diffusers}.to_q", f"{original}.q", TO_HEADS),
        Row(f"{ours}/key/linear", f"{diffusers}.to_k", f"{original}.k", TO_HEADS),
        Row(f"{ours}/value/linear", f"{diffusers}.to_v", f"{original}.v", TO_HEADS),
        Row(f"{ours}/out", f"{diffusers}.to_out.0", f"{original}.o", FROM_HEADS),
        Row(f"{ours}/query/norm", f"{diffusers}.norm_q", f"{original}.norm_q", HEAD_NORM),
        Row(f"{ours}/key/norm", f"{diffusers}.norm_k", f"{original}.norm_k", HEAD_NORM),
    ]


EMBEDDER, PICTURE = "condition_embedder", "condition_embedder.image_embedder"

ROWS = [
    Row("embedding/patches", "patch_embedding", "patch_embedding", PATCHES),
    Row("embedding/time_in", f"{EMBEDDER}.time_embedder.linear_1", "time_embedding.0"),
    Row("embedding/time_out", f"{EMBEDDER}.time_embedder.linear_2", "time_embedding.2"),
    Row("embedding/time_modulation", f"{EMBEDDER}.time_proj", "time_projection.1"),
    Row("embedding/text_in", f"{EMBEDDER}.text_embedder.linear_1", "text_embedding.0"),
    Row("embedding/text_out", f"{EMBEDDER}.text_embedder.linear_2", "text_embedding.2"),
    Row("head/table", "scale_shift_table", "head.modulation", TABLE),
    Row("head/out", "proj_out", "head.head"),
]
PICTURE_ROWS = [
    Row("embedding/picture/norm_in", f"{PICTURE}.norm1", "img_emb.proj.0", LAYER_NORM),
    Row("embedding/picture/up", f"{PICTURE}.ff.net.0.proj", "img_emb.proj.1"),
    Row("embedding/picture/down", f"{PICTURE}.ff.net.2", "img_emb.proj.3"),
    Row("embedding/picture/norm_out", f"{PICTURE}.norm2", "img_emb.proj.4", LAYER_NORM),
]
POSITION_ROWS = [
    Row("embedding/picture/positions", f"{PICTURE}.pos_embed", "img_emb.emb_pos", TABLE)
]
BLOCK_ROWS = [
    Row("table", "scale_shift_table", "modulation", TABLE),
    *_attention("self_attention", "attn1", "self_attn"),
    *_attention("text_attention", "attn2", "cross_attn"),
    Row("ffn/up", "ffn.net.0.proj", "ffn.0"),
    Row("ffn/down", "ffn.net.2", "ffn.2"),
]
TEXT_NORM_ROWS = [Row("text_norm", "norm2", "norm3", LAYER_NORM)]
PICTURE_BLOCK_ROWS = [
    Row("text_attention/picture_key/linear", "attn2.add_k_proj", "cross_attn.k_img", TO_HEADS),
    Row("text_attention/picture_value/linear", "attn2.add_v_proj", "cross_attn.v_img", TO_HEADS),
    Row(
        "text_attention/picture_key/norm", "attn2.norm_added_k", "cross_attn.norm_k_img", HEAD_NORM
    ),
]


def _entries(rows: Iterable[Row], side: str, c: WanConfig, prefix: str = "") -> Iterator[Entry]:
    lengths = {"n": c.heads} | dict(zip("tpq", c.patch, strict=True))
    for row in rows:
        for leaf, (suffix, layout) in row.tensors.items():
            yield Entry(
                "/".join(part for part in (prefix and "blocks", row.ours, leaf) if part),
                prefix + ".".join(part for part in (getattr(row, side), suffix) if part),
                layout,
                {axis: length for axis, length in lengths.items() if axis in layout},
            )


def table(module: nn.Module, side: str = "diffusers") -> list[Entry]:
    """Entries of every parameter of a `WanDiT`; `side` is "diffusers" or "original"."""
    c = module.config
    outside, inside = list(ROWS), list(BLOCK_ROWS)
    if c.text_norm:
        inside += TEXT_NORM_ROWS
    if c.image_width is not None:
        outside += PICTURE_ROWS
        inside += PICTURE_BLOCK_ROWS
    if c.image_positions is not None:
        outside += POSITION_ROWS
    return [
        *_entries(outside, side, c),
        *_entries(inside, side, c, f"blocks.{LAYER}."),
    ]


def example(module: nn.Module) -> tuple[Any, ...]:
    """Shapes of the smallest inputs that reach every parameter."""
    c = module.config
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    inputs = (shape(1, *c.patch, c.in_channels), shape(1), shape(1, 1, c.text_width))
    if c.image_width is None:
        return inputs
    return *inputs, shape(1, c.image_positions or 1, c.image_width)


def _take(config: dict[str, Any], where: str, known: dict[str, Any]) -> dict[str, Any]:
    """`known`'s values, those of `config` in their place; any other key is refused."""
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    strange = sorted(set(given) - set(known))
    if strange:
        raise ConvertError(
            f"config.json: {where} has the key {strange[0]!r} that this version does not implement; "
            f"known are {', '.join(sorted(known))}"
        )
    return known | given


def _only(config: dict[str, Any], key: str, *accepted: Any) -> None:
    """Refuses a value of `key` that the tower does not implement."""
    value = config[key]
    if (tuple(value) if isinstance(value, list) else value) not in accepted:
        raise ConvertError(
            f"config.json: {key} is {value!r}; only {' or '.join(map(repr, accepted))} is implemented"
        )


DIFFUSERS_DEFAULTS = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=40,
    attention_head_dim=128,
    in_channels=16,
    out_channels=16,
    text_dim=4096,
    freq_dim=256,
    ffn_dim=13824,
    num_layers=40,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    image_dim=None,
    added_kv_proj_dim=None,
    rope_max_seq_len=1024,
    pos_embed_seq_len=None,
)


def read_config(config: dict[str, Any], dtype: str) -> WanDiT:
    """A `WanDiT` of the sizes in a diffusers config.

    Raises:
      ConvertError: a key or value that the tower does not implement.
    """
    c = _take(config, "WanTransformer3DModel", DIFFUSERS_DEFAULTS)
    _only(c, "qk_norm", "rms_norm_across_heads")
    width = c["num_attention_heads"] * c["attention_head_dim"]
    if (c["image_dim"] is None) != (c["added_kv_proj_dim"] is None):
        raise ConvertError(
            f"config.json: image_dim is {c['image_dim']} and added_kv_proj_dim {c['added_kv_proj_dim']}; "
            "a model reads pictures with both or with neither"
        )
    if c["added_kv_proj_dim"] not in (None, width):
        raise ConvertError(
            f"config.json: added_kv_proj_dim is {c['added_kv_proj_dim']}, the picture features arrive {width} "
            "wide; set it to num_attention_heads * attention_head_dim"
        )
    return WanDiT(
        WanConfig(
            width=width,
            heads=c["num_attention_heads"],
            layers=c["num_layers"],
            ffn=c["ffn_dim"],
            frequency_width=c["freq_dim"],
            in_channels=c["in_channels"],
            out_channels=c["out_channels"] or c["in_channels"],
            text_width=c["text_dim"],
            patch=tuple(c["patch_size"]),
            text_norm=c["cross_attn_norm"],
            image_width=c["image_dim"],
            image_positions=c["pos_embed_seq_len"],
            eps=c["eps"],
            dtype=dtype,
            param_dtype=dtype,
        )
    )


def write_config(module: nn.Module) -> dict[str, Any]:
    """The diffusers config of a `WanDiT`."""
    c = module.config
    return DIFFUSERS_DEFAULTS | dict(
        patch_size=list(c.patch),
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        in_channels=c.in_channels,
        out_channels=c.out_channels,
        text_dim=c.text_width,
        freq_dim=c.frequency_width,
        ffn_dim=c.ffn,
        num_layers=c.layers,
        cross_attn_norm=c.text_norm,
        eps=c.eps,
        image_dim=c.image_width,
        added_kv_proj_dim=None if c.image_width is None else c.width,
        pos_embed_seq_len=c.image_positions,
    )


RELEASE_KEYS = {
    "patch_size": "patch_size",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "image_dim": "image_dim",
    "pos_embed_seq_len": "pos_embed_seq_len",
}
"""Wan's own key -> diffusers'; the last two are `complete_original_config`'s."""

RELEASE_DEFAULTS = dict(
    model_type="t2v",
    patch_size=(1, 2, 2),
    text_len=512,
    in_dim=16,
    dim=2048,
    ffn_dim=8192,
    freq_dim=256,
    text_dim=4096,
    out_dim=16,
    num_heads=16,
    num_layers=32,
    window_size=(-1, -1),
    qk_norm=True,
    cross_attn_norm=True,
    eps=1e-6,
    image_dim=None,
    pos_embed_seq_len=None,
)


def read_original_config(config: dict[str, Any], dtype: str) -> WanDiT:
    """A `WanDiT` of the sizes in the config of Wan's own release.

    That config does not say whether an "i2v" model reads picture features
    (Wan2.1 does, Wan2.2 does not): `complete_original_config` does.

    Raises:
      ConvertError: a key or value that the tower does not implement.
    """
    c = _take(config, "WanModel", RELEASE_DEFAULTS)
    _only(c, "model_type", "t2v", "i2v", "ti2v", "flf2v")
    _only(c, "window_size", (-1, -1))
    _only(c, "qk_norm", True)
    if c["dim"] % c["num_heads"]:
        raise ConvertError(
            f"config.json: dim is {c['dim']}, which does not divide into num_heads = {c['num_heads']}"
        )
    renamed = {theirs: c[ours] for ours, theirs in RELEASE_KEYS.items()} | {
        "attention_head_dim": c["dim"] // c["num_heads"],
        "added_kv_proj_dim": None if c["image_dim"] is None else c["dim"],
    }
    return read_config(renamed, dtype)


def complete_original_config(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The release's config with what only its tensors tell: the picture branch's sizes."""
    found = {}
    if "img_emb.proj.0.weight" in shapes:
        found["image_dim"] = shapes["img_emb.proj.0.weight"][0]
    if "img_emb.emb_pos" in shapes:
        found["pos_embed_seq_len"] = shapes["img_emb.emb_pos"][1]
    return config | found


FAMILY = Family(
    name="WanTransformer3DModel",
    weights="diffusion_pytorch_model",
    read_config=read_config,
    write_config=write_config,
    example=example,
    table=table,
)

ORIGINAL_FAMILY = dataclasses.replace(
    FAMILY,
    name="WanModel",
    read_config=read_original_config,
    table=lambda module: table(module, "original"),
    complete_config=complete_original_config,
)
