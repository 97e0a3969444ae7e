"""umT5 beside transformers' own, and round trips through its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from wallwm_jax.convert import load_pretrained, save_pretrained
from wallwm_jax.models.umt5 import relative_bucket

TOLERANCE = 2e-5

SIZES = {
    "square": dict(d_model=24, d_kv=8, num_heads=3, d_ff=40, num_layers=3, vocab_size=90),
    "narrow heads": dict(d_model=30, d_kv=4, num_heads=5, d_ff=22, num_layers=1, vocab_size=41),
    "wide heads": dict(
        d_model=12, d_kv=16, num_heads=2, d_ff=70, num_layers=3, vocab_size=300,
        layer_norm_epsilon=1e-3,
    ),
    "short reach": dict(
        d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=2, vocab_size=64,
        relative_attention_num_buckets=16, relative_attention_max_distance=20,
    ),
}  # fmt: skip


def encoder(name, randomise, seed=0):
    model = randomise(UMT5EncoderModel(UMT5Config(**SIZES[name])), seed)
    # Positions must matter as much as content, or a wrong bucket could hide.
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[0].SelfAttention.relative_attention_bias.weight.mul_(4)
    return model


def captions(vocabulary, batch, length, kind, seed=0):
    """Token ids and a mask: "full", "padded", "holes" or "one" token."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocabulary, (batch, length))
    mask = np.ones((batch, length), np.int32)
    if kind == "padded":
        mask = (np.arange(length) < rng.integers(1, length, (batch, 1))).astype(np.int32)
    if kind == "holes":
        mask = rng.integers(0, 2, (batch, length)).astype(np.int32)
        mask[:, 0] = 1
    if kind == "one":
        mask = (np.arange(length) == 0).astype(np.int32) * np.ones((batch, 1), np.int32)
    return ids, mask


@pytest.mark.parametrize(
    ("name", "batch", "length", "kind"),
    [
        ("square", 1, 7, "full"),
        ("square", 3, 13, "padded"),
        ("narrow heads", 3, 5, "holes"),
        ("narrow heads", 1, 1, "full"),
        ("wide heads", 1, 301, "padded"),
        ("wide heads", 3, 9, "one"),
        ("short reach", 3, 77, "holes"),
    ],
)
def test_features_are_theirs(
    name, batch, length, kind, randomise, saved, relative_error, record_property
):
    model = encoder(name, randomise)
    ids, mask = captions(SIZES[name]["vocab_size"], batch, length, kind)
    with torch.no_grad():
        theirs = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    module, params = load_pretrained(saved(model))
    apply = jax.jit(lambda ids, mask: module.apply({"params": params}, ids, mask))
    ours = apply(jnp.asarray(ids), jnp.asarray(mask))
    error = relative_error(ours, theirs)  # rows of padding too
    record_property("parity_error", error)
    print(f"umt5 {name} B={batch} L={length} {kind}: {error:.2e}")
    assert error <= TOLERANCE
    np.testing.assert_array_equal(ours, apply(jnp.asarray(ids), jnp.asarray(mask) > 0))


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (16, 20), (64, 300), (8, 1000)])
def test_every_bucket_is_theirs(buckets, furthest):
    sizes = SIZES["square"] | dict(
        relative_attention_num_buckets=buckets, relative_attention_max_distance=furthest
    )
    attention = UMT5Attention(UMT5Config(**sizes), has_relative_attention_bias=True)
    distances = np.arange(-600, 601)
    theirs = attention._relative_position_bucket(torch.tensor(distances))
    np.testing.assert_array_equal(relative_bucket(distances, buckets, furthest), theirs)


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_gives_identical_tensors(shard, dtype, randomise, saved, tmp_path):
    model = encoder("wide heads", randomise).to(getattr(torch, dtype))
    folder = saved(model, max_shard_size=shard)
    module, params = load_pretrained(folder, dtype=dtype)
    save_pretrained(module, params, tmp_path / "out", max_shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    back = UMT5EncoderModel.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
    theirs = model.state_dict()
    assert back.state_dict().keys() == theirs.keys()
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    for key in SIZES["wide heads"]:
        assert getattr(back.config, key) == getattr(model.config, key)


def test_bfloat16_stays_close_where_float16_would_overflow(randomise, saved, relative_error):
    """Residuals of the size that umT5-XXL has (1e4 and more) leave float16's range."""
    model = encoder("square", randomise)
    with torch.no_grad():
        model.shared.weight.mul_(3e5)
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(3e5)
    ids, mask = captions(90, 3, 11, "padded")
    with torch.no_grad():
        out = model(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)
    assert max(h.abs().max() for h in out.hidden_states[:-1]) > np.finfo(np.float16).max
    module, params = load_pretrained(saved(model), dtype="bfloat16")
    ours = module.apply({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
    assert ours.dtype == jnp.bfloat16
    assert params["layers"]["position_bias"].dtype == jnp.float32
    assert relative_error(ours.astype(jnp.float32), out.last_hidden_state) < 0.05
