"""The Wan codecs: chunks and tiles change nothing, time is causal, memory stays flat."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.wan_vae import (
    WAN_VAE_SIZES,
    WanVAE,
    WanVAEConfig,
    denormalise_latents,
    normalise_latents,
)
from wallwm_jax.models.wan_vae_layers import conv_by_pictures, conv_whole
from wallwm_jax.models.wan_vae_tiles import in_tiles

SMALL = dict(encoder_width=4, decoder_width=4, latent_channels=3, multipliers=(1, 2), blocks=1)
CONFIGS = {
    "2.1": WanVAEConfig(**SMALL | dict(multipliers=(1, 2, 2)), time=(True, True)),
    "2.2": WanVAEConfig(
        **SMALL | dict(multipliers=(2, 2), residual=True),
        time=(True,),
        patch=2,
        in_channels=12,
        out_channels=12,
    ),
}
GROUPS = 5


@functools.cache
def random_params(config):
    """Parameters of a codec, gains and biases random too, without running its `init`."""
    clip = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(WanVAE(config).init, jax.random.key(0), clip)["params"])
    rng = np.random.default_rng(0)

    def draw(leaf):
        around, spread = (0.5, 0.3) if leaf.ndim == 1 else (0.0, np.prod(leaf.shape[:-1]) ** -0.5)
        return jnp.asarray(rng.normal(around, spread, leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


@functools.cache
def compiled(config, method, *arguments):
    """One of the codec's methods."""
    return jax.jit(
        lambda p, x: WanVAE(config).apply({"params": p}, x, *arguments, method=method),
        # A third of the compilation, which is nearly all of these tests' time.
        compiler_options={"xla_backend_optimization_level": 0},
    )


def call(config, method, x, *arguments):
    """The method's result with the random parameters."""
    return np.asarray(compiled(config, method, *arguments)(random_params(config), x))


def clip(frames, height=8, width=16, batch=2):
    """Random pixels in [-1, 1]."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (batch, frames, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_chunks_change_nothing(config):
    video = clip(1 + GROUPS * config.time_factor)
    latents = call(config, "encode", video, None)
    pixels = call(config, "decode", latents, None)
    assert latents.shape[1] == 1 + GROUPS and pixels.shape == video.shape
    # 1: all alike; 2 and 3: the first chunk takes what is left; 9: one chunk.
    for groups in (1, 2, 3, 9):
        for method, x, whole in (("encode", video, latents), ("decode", latents, pixels)):
            chunked = call(config, method, x, groups)
            np.testing.assert_allclose(chunked, whole, atol=1e-5 * np.abs(whole).max(), rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_future_changes_nothing(config):
    factor = config.time_factor
    video = clip(1 + GROUPS * factor)
    later = video.copy()
    later[:, 1 + 2 * factor] = 0.0
    # That is the first frame of the third group, of which latents 0 to 2 know nothing.
    one, other = call(config, "encode", video, 1), call(config, "encode", later, 1)
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert np.abs(one[:, 3] - other[:, 3]).max() > 1e-4
    changed = one.copy()
    changed[:, 3] = 0.0
    one, other = call(config, "decode", one, 1), call(config, "decode", changed, 1)
    np.testing.assert_array_equal(one[:, : 1 + 2 * factor], other[:, : 1 + 2 * factor])
    assert np.abs(one[:, 1 + 2 * factor] - other[:, 1 + 2 * factor]).max() > 1e-4


def test_one_tile_is_the_picture():
    config = CONFIGS["2.2"]
    latents = np.random.default_rng(2).normal(size=(1, 1, 3, 4, 3)).astype(np.float32)
    tiled = call(config, "decode_tiled", latents, (16, 16), (16, 16))
    np.testing.assert_allclose(tiled, call(config, "decode", latents), atol=1e-5)


class Pixelwise(nn.Module):
    """What no tile can change: every pixel by itself, repeated to a picture twice as large."""

    @nn.compact
    def __call__(self, x):
        return in_tiles(self, lambda _, tile: jnp.tanh(self.grow(tile)), x, (5, 4), (3, 2), self.to)

    @staticmethod
    def to(length):
        return 2 * length

    @staticmethod
    def grow(x):
        return x.repeat(2, axis=2).repeat(2, axis=3)


@pytest.mark.parametrize("size", [(3, 3), (5, 4), (7, 9), (12, 6)])
def test_tiles_of_what_is_pixelwise_are_the_picture(size):
    x = jnp.asarray(clip(2, *size))
    whole = jnp.tanh(Pixelwise.grow(x))
    np.testing.assert_allclose(Pixelwise().apply({}, x), whole, atol=1e-6)


def test_tiles_fade_linearly():
    # Two tiles of 4 columns, 2 apart, each filled with its own number: 0, then 1.
    class Numbered(nn.Module):
        def __call__(self, x):
            fill = lambda _, tile: jnp.full_like(tile, tile[0, 0, 0, 0, 0] / 2)  # noqa: E731
            return in_tiles(self, fill, x, (1, 4), (1, 2), lambda n: n)

    columns = jnp.arange(4.0).reshape(1, 1, 1, 4, 1)
    assert Numbered().apply({}, columns).ravel().tolist() == [0.0, 0.0, 0.0, 0.5]


def test_published_normalisation():
    config = WanVAEConfig(**WAN_VAE_SIZES["wan2.1"])
    z = jax.random.normal(jax.random.key(0), (2, 3, 16))
    np.testing.assert_allclose(
        denormalise_latents(config, normalise_latents(config, z)), z, atol=1e-5
    )
    # First channel of the published statistics: mean -0.7571, deviation 2.8184.
    np.testing.assert_allclose(
        normalise_latents(config, jnp.zeros((1, 16)))[0, 0], 0.7571 / 2.8184, rtol=1e-6
    )
    with pytest.raises(ValueError, match="latent_mean"):
        normalise_latents(CONFIGS["2.1"], z)


@pytest.mark.parametrize("name", ["tiny-2.1", "tiny-2.2"])
def test_tiny_sizes_compress_like_the_published_ones(name):
    tiny, full = (WanVAEConfig(**WAN_VAE_SIZES[n]) for n in (name, name.replace("tiny-", "wan")))
    for shared in ("time_factor", "space_factor", "latent_channels", "residual", "patch"):
        assert getattr(tiny, shared) == getattr(full, shared)


def test_a_single_frame_makes_every_parameter():
    module = WanVAE(WanVAEConfig(**WAN_VAE_SIZES["tiny-2.2"]))
    one, many = (
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, frames, 16, 16, 3)))
        for frames in (1, 9)
    )
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, many)


@pytest.mark.parametrize("channels", [5, 20])
def test_convolution_by_pictures_is_the_convolution(channels):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, channels, 4))
    np.testing.assert_allclose(
        conv_by_pictures(x, kernel), conv_whole(x, kernel), rtol=1e-4, atol=1e-3
    )


def test_half_precision_keeps_to_the_full_one():
    config = CONFIGS["2.1"]
    half = dataclasses.replace(config, dtype="bfloat16")
    video = clip(1)
    full = call(config, "encode", video)
    latents = call(half, "encode", video)
    assert latents.dtype == jnp.bfloat16 and random_params(half)["quant"]["bias"].dtype == "float32"
    np.testing.assert_allclose(latents.astype(np.float32), full, atol=0.1 * np.abs(full).max())


@pytest.mark.parametrize(
    ("method", "shape", "arguments", "complaint"),
    [
        ("encode", (1, 4, 8, 8, 3), (), "4 frames, this codec needs 1 [+] 4N"),
        ("encode", (1, 5, 8, 3, 3), (), "side of 3 pixels"),
        ("encode", (1, 5, 8, 8, 4), (), "4 colours"),
        ("encode", (1, 5, 8, 8, 3), (0,), "groups_per_chunk is 0"),
        ("decode", (1, 2, 4, 4, 5), (), "decodes .B, F, h, w, 3."),
        ("decode_tiled", (1, 2, 4, 4, 3), ((10, 8), (8, 8)), "multiples of 4"),
        ("decode_tiled", (1, 2, 4, 4, 3), ((8, 8), (8, 12)), "at most the tile"),
        ("encode_tiled", (1, 5, 18, 16, 3), ((8, 8), (8, 8)), "last tile"),
    ],
)
def test_what_does_not_fit_is_refused(method, shape, arguments, complaint):
    module = WanVAE(CONFIGS["2.1"])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(
            lambda key, x: module.init(key, x, *arguments, method=method), jax.random.key(0), x
        )


def test_a_picture_between_latent_pixels_is_refused_where_paths_go_around():
    module = WanVAE(CONFIGS["2.2"])
    with pytest.raises(ValueError, match="side of 18 pixels.*multiple of 4"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 18, 16, 3)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(time=(True,)), "time has 1 entries"),
        (dict(patch=2), "in_channels is 3"),
        (dict(residual=True, multipliers=(1, 2, 3), time=(True, True)), "from 8 to 12 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(CONFIGS["2.1"], **change)


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_long_clip_needs_the_memory_of_a_short_one(method):
    # Published width at full resolution, where the memory is; fewer resolutions.
    module = WanVAE(
        WanVAEConfig(
            encoder_width=96,
            decoder_width=96,
            latent_channels=16,
            multipliers=(1, 1),
            blocks=1,
            time=(True,),
        )
    )
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    params = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), shape(1, 1, 8, 8, 3)))

    def peak(frames, groups):
        video, latents = shape(1, frames, 64, 64, 3), shape(1, 1 + frames // 2, 32, 32, 16)
        run = jax.jit(lambda p, x: module.apply(p, x, groups, method=method))
        memory = run.lower(params, video if method == "encode" else latents).compile()
        memory = memory.memory_analysis()
        # Clip and latents count on both sides, whichever of them comes in.
        clip_bytes = 4 * (np.prod(video.shape) + np.prod(latents.shape))
        return memory.temp_size_in_bytes + clip_bytes

    short, long = peak(17, 1), peak(129, 1)
    print(f"{method}: {short / 2**20:.0f} MiB for 17 frames, {long / 2**20:.0f} for 129")
    assert long <= 1.5 * short
    # Were it not for the chunks, it would be several times as much.
    assert peak(33, None) > 2 * long
