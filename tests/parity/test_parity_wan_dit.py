"""The Wan DiT beside diffusers' own, and round trips through both layouts.

Letters of the shapes: batch, latent frames, height, width, channels.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.numpy import load_file, save_file

from wallwm_jax.convert import load_pretrained, save_pretrained
from wallwm_jax.convert.plan import leaves
from wallwm_jax.convert.wan_dit import FAMILY, write_config
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT

TOLERANCE = 2e-5

SMALL = dict(text_dim=20, freq_dim=32, ffn_dim=40, num_layers=2)
MODELS = {
    "t2v": dict(SMALL, num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4),
    "wide frequencies, own eps": dict(
        SMALL, num_attention_heads=3, attention_head_dim=16, in_channels=6, out_channels=4,
        freq_dim=256, patch_size=(1, 1, 1), eps=1e-3, num_layers=3,
    ),
    "time patches, no text norm": dict(
        SMALL, num_attention_heads=1, attention_head_dim=64, in_channels=5, out_channels=5,
        freq_dim=256, patch_size=(2, 2, 2), cross_attn_norm=False, num_layers=1,
    ),
    "i2v channels": dict(
        SMALL, num_attention_heads=2, attention_head_dim=128, in_channels=36, out_channels=16,
        freq_dim=256, text_dim=4096,
    ),
    "i2v with picture": dict(
        SMALL, num_attention_heads=2, attention_head_dim=24, in_channels=12, out_channels=4,
        image_dim=20, added_kv_proj_dim=48,
    ),
    "first and last frame": dict(
        SMALL, num_attention_heads=4, attention_head_dim=10, in_channels=12, out_channels=4,
        image_dim=14, added_kv_proj_dim=40, pos_embed_seq_len=6,
    ),
}  # fmt: skip


def model(name, randomise, seed=0):
    reference = randomise(WanTransformer3DModel(**MODELS[name]), seed)
    with torch.no_grad():
        # Sharp attention: a query and a key that are out of place must show.
        for block in reference.blocks:
            for attention in (block.attn1, block.attn2):
                attention.norm_q.weight.mul_(3)
    return reference


def own_config(reference):
    """A model's config as JSON holds it, without what its library adds."""
    config = {k: v for k, v in reference.config.items() if not k.startswith("_")}
    return json.loads(json.dumps(config))


def inputs(name, shape, per_token, text_length, seed=0):
    """numpy inputs of one call: latents (channels first), timestep, text, picture."""
    rng = np.random.default_rng(seed)
    config = MODELS[name]
    patch = config.get("patch_size", (1, 2, 2))
    batch, *grid = shape
    tokens = int(np.prod([size // p for size, p in zip(grid, patch, strict=True)]))
    draw = lambda *sizes: rng.standard_normal(sizes, np.float32)  # noqa: E731
    picture = None
    if "image_dim" in config:
        # First-and-last-frame models take the two pictures as two rows of the batch.
        pictures, length = (2, 3) if "pos_embed_seq_len" in config else (1, 7)
        picture = draw(pictures * batch, length, config["image_dim"])
    timestep = rng.uniform(0, 1000, (batch, tokens) if per_token else batch).astype(np.float32)
    if per_token:
        timestep[:, : tokens // 3] = 0  # the clean first frame
    text = draw(batch, text_length, config["text_dim"])
    return draw(batch, config["in_channels"], *grid), timestep, text, picture


@pytest.mark.parametrize(
    ("name", "shape", "per_token", "text_length"),
    [
        ("t2v", (1, 3, 6, 10), False, 7),
        ("t2v", (3, 1, 2, 2), True, 1),
        ("t2v", (1, 40, 4, 2), True, 9),
        ("wide frequencies, own eps", (3, 1, 5, 3), False, 512),
        ("wide frequencies, own eps", (1, 2, 3, 7), True, 5),
        ("time patches, no text norm", (2, 4, 6, 10), True, 9),
        ("i2v channels", (1, 3, 10, 6), False, 512),
        # diffusers takes what is before the last 512 positions for the picture.
        ("i2v with picture", (2, 2, 6, 4), False, 512),
        ("first and last frame", (1, 2, 2, 6), True, 512),
    ],
)
def test_velocity_is_theirs(
    name, shape, per_token, text_length, randomise, saved, relative_error, record_property
):
    reference = model(name, randomise)
    latents, timestep, text, picture = inputs(name, shape, per_token, text_length)
    with torch.no_grad():
        arguments = [None if x is None else torch.from_numpy(x) for x in (timestep, text, picture)]
        want = reference(torch.from_numpy(latents), *arguments, return_dict=False)[0]
    module, params = load_pretrained(saved(reference))
    if picture is not None:
        picture = picture.reshape(shape[0], -1, picture.shape[-1])
    got = jax.jit(module.apply)(
        {"params": params}, np.moveaxis(latents, 1, -1), timestep, text, picture
    )
    error = relative_error(got, want.movedim(1, -1))
    record_property("parity_error", error)
    assert error <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_gives_back_every_tensor(name, randomise, saved, tmp_path):
    reference = model(name, randomise, seed=1)
    module, params = load_pretrained(saved(reference))
    save_pretrained(module, params, tmp_path / "again")
    again = WanTransformer3DModel.from_pretrained(tmp_path / "again")
    assert own_config(again) == own_config(reference)
    want = reference.state_dict()
    have = again.state_dict()
    assert have.keys() == want.keys()
    assert all(torch.equal(have[key], want[key]) for key in want)


ORIGINAL_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("proj_out", "head.head"),
    ("attn2.add_k_proj", "cross_attn.k_img"),
    ("attn2.add_v_proj", "cross_attn.v_img"),
    ("attn2.norm_added_k", "cross_attn.norm_k_img"),
    ("attn1.", "self_attn."),
    ("attn2.", "cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    (".norm2.", ".norm3."),
    (".scale_shift_table", ".modulation"),
)
"""How the release's names differ, as a chain of replacements: written here apart
from the table under test."""


def original_name(name):
    if name == "scale_shift_table":
        return "head.modulation"
    for diffusers, original in ORIGINAL_NAMES:
        name = name.replace(diffusers, original)
    return name


@pytest.mark.parametrize(
    "name", ["t2v", "i2v channels", "i2v with picture", "first and last frame"]
)
def test_release_layout_is_the_same_model(name, randomise, saved, tmp_path):
    reference = model(name, randomise, seed=2)
    folder = saved(reference)
    c = reference.config
    config = dict(
        _class_name="WanModel",
        _diffusers_version="0.30.0",
        model_type="i2v" if c.in_channels > c.out_channels else "t2v",
        dim=c.num_attention_heads * c.attention_head_dim,
        ffn_dim=c.ffn_dim,
        freq_dim=c.freq_dim,
        text_dim=c.text_dim,
        in_dim=c.in_channels,
        out_dim=c.out_channels,
        num_heads=c.num_attention_heads,
        num_layers=c.num_layers,
        text_len=512,
        eps=c.eps,
    )
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    release = tmp_path / "release"
    release.mkdir()
    (release / "config.json").write_text(json.dumps(config))
    save_file(
        {original_name(key): value for key, value in tensors.items()},
        release / "diffusion_pytorch_model.safetensors",
    )
    module, params = load_pretrained(folder)
    other_module, other_params = load_pretrained(release)
    assert other_module == module
    jax.tree.map(np.testing.assert_array_equal, other_params, params)


def test_bfloat16_keeps_time_norms_and_tables_in_float32(randomise, saved):
    module, params = load_pretrained(saved(model("t2v", randomise)), dtype="bfloat16")
    assert params["blocks"]["ffn"]["up"]["kernel"].dtype == jnp.bfloat16
    for leaf in (
        params["blocks"]["table"],
        params["blocks"]["text_norm"]["scale"],
        params["embedding"]["time_out"]["kernel"],
    ):
        assert leaf.dtype == jnp.float32
    latents, timestep, text, _ = inputs("t2v", (1, 2, 4, 4), False, 5)
    latents = np.moveaxis(latents, 1, -1)
    got = jax.jit(module.apply)({"params": params}, latents, timestep, text)
    full, full_params = load_pretrained(saved(model("t2v", randomise), "full"))
    want = jax.jit(full.apply)({"params": full_params}, latents, timestep, text)
    assert np.abs(np.asarray(got, np.float32) - want).max() <= 0.05 * np.abs(want).max()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(latents=(1, 2, 5, 4, 4), timestep=(1,)), "not whole patches"),
        (dict(latents=(1, 2, 4, 4, 4), timestep=(1, 3)), "3 entries per sample, the latents 8"),
        (dict(latents=(1, 2, 4, 4, 4), timestep=(1,), picture=(1, 2, 5)), "picture is given"),
    ],
)
def test_calls_that_do_not_fit_are_refused(call, words, randomise, saved):
    module, params = load_pretrained(saved(model("t2v", randomise)))
    shapes = {key: np.zeros(shape, np.float32) for key, shape in call.items()}
    with pytest.raises(ValueError, match=words):
        module.apply({"params": params}, text=np.zeros((1, 3, 20), np.float32), **shapes)


@pytest.mark.parametrize("size", WAN_SIZES)
def test_named_sizes_have_every_parameter_of_diffusers(size):
    """Full size, abstract on both sides: names, shapes and number of parameters."""
    module = WanDiT(WanConfig(**WAN_SIZES[size]))
    with torch.device("meta"):
        reference = WanTransformer3DModel(**write_config(module))
    theirs = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    ours = {
        name: leaf.entry.their_shape(leaf.shape)
        for leaf in leaves(FAMILY, module)
        for name in leaf.names
    }
    assert ours == theirs
