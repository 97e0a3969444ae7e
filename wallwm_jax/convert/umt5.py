"""umT5 in transformers' layout: `UMT5EncoderModel`.

Letters of the layouts: o out, i in, n heads, h head dimension.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.table import LAYER, Entry, Family
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder

SIZES = {
    "vocab_size": "vocabulary",
    "d_model": "width",
    "num_heads": "heads",
    "d_kv": "head_dim",
    "num_layers": "layers",
    "d_ff": "ffn",
}
"""Keys that config.json must have -> our fields."""

RULES = {
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
}
"""Keys that transformers has defaults for, the same as ours."""

FIXED: dict[str, Any] = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "is_decoder": False,
}
"""Keys of which one value is implemented."""

IGNORED = set(
    "architectures classifier_dropout decoder_start_token_id dropout_rate dtype torch_dtype "
    "eos_token_id pad_token_id bos_token_id initializer_factor is_encoder_decoder num_decoder_layers "
    "output_past scalable_attention tie_word_embeddings tokenizer_class transformers_version use_cache "
    "chunk_size_feed_forward id2label label2id output_attentions output_hidden_states problem_type "
    "return_dict task_specific_params gradient_checkpointing n_positions".split()
)
"""Keys about training, the decoder, or bookkeeping: they change no number of the encoder."""


def read_config(config: dict[str, Any], dtype: str) -> UMT5Encoder:
    """An encoder of the sizes in a transformers config.

    Raises:
      ConvertError: a size missing, a key or value that is not implemented.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    strange = sorted(given.keys() - SIZES.keys() - RULES.keys() - FIXED.keys() - IGNORED)
    if strange:
        raise ConvertError(
            f"config.json: UMT5EncoderModel has the key {strange[0]!r} that this version does not "
            "implement; remove it only if it changes no number"
        )
    for key, only in FIXED.items():
        if given.get(key, only) != only:
            raise ConvertError(
                f"config.json: {key} is {given[key]!r}; only {only!r} is implemented"
            )
    missing = [key for key in SIZES if key not in given]
    if missing:
        raise ConvertError(
            f"config.json: {', '.join(missing)} missing; copy the model's own config"
        )
    for key in (*SIZES, "relative_attention_num_buckets", "relative_attention_max_distance"):
        value = given.get(key, 1)
        if type(value) is not int or value < 1:
            raise ConvertError(f"config.json: {key} is {value!r}; it must be a positive number")
    fields = {ours: given[key] for key, ours in (SIZES | RULES).items() if key in given}
    return UMT5Encoder(UMT5Config(**fields, dtype=dtype, param_dtype=dtype))


def write_config(module: nn.Module) -> dict[str, Any]:
    """The transformers config of an encoder."""
    c = module.config
    sizes = {key: getattr(c, ours) for key, ours in (SIZES | RULES).items()}
    # T5's tokens: padding 0, which also starts the decoder, end 1.
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
    return FIXED | sizes | tokens | {"torch_dtype": c.param_dtype}


def example(module: nn.Module) -> tuple[Any, ...]:
    """Shapes of one caption of one token."""
    del module
    return jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool_)


def table(module: nn.Module) -> list[Entry]:
    """Entries of every parameter of a `UMT5Encoder`."""
    heads = {"n": module.config.heads}
    block = f"encoder.block.{LAYER}.layer"
    attention, ffn = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
    to_heads = {"query": "q", "key": "k", "value": "v"}
    return [
        Entry("embedding/embedding", "shared.weight", aliases=("encoder.embed_tokens.weight",)),
        Entry("norm/scale", "encoder.final_layer_norm.weight"),
        Entry("layers/attention_norm/scale", f"{block}.0.layer_norm.weight"),
        Entry("layers/ffn_norm/scale", f"{block}.1.layer_norm.weight"),
        *[
            Entry(f"layers/{o}/kernel", f"{attention}.{t}.weight", "(n h) i -> i n h", heads)
            for o, t in to_heads.items()
        ],
        Entry("layers/out/kernel", f"{attention}.o.weight", "o (n h) -> n h o", heads),
        Entry("layers/position_bias", f"{attention}.relative_attention_bias.weight"),
        *[
            Entry(f"layers/{o}/kernel", f"{ffn}.{t}.weight", "o i -> i o")
            for o, t in {"gate": "wi_0", "up": "wi_1", "down": "wo"}.items()
        ],
    ]


FAMILY = Family(
    name="UMT5EncoderModel",
    weights="model",
    library="transformers",
    read_config=read_config,
    write_config=write_config,
    example=example,
    table=table,
)
