"""The Wan codecs against diffusers' AutoencoderKLWan: numbers, tiles, weights there and back."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from wallwm_jax.convert import load_pretrained, save_pretrained
from wallwm_jax.convert.wan_vae import FAMILY
from wallwm_jax.models.wan_vae import WAN_VAE_SIZES, WanVAE, WanVAEConfig

TOLERANCE = 2e-5


def config(**sizes):
    """diffusers' arguments; latents of 4 channels with statistics of their own."""
    sizes = dict(z_dim=4, num_res_blocks=1, scale_factor_temporal=4, scale_factor_spatial=4) | sizes
    statistics = dict(latents_mean=[0.5] * sizes["z_dim"], latents_std=[2.0] * sizes["z_dim"])
    return sizes | statistics


PATCHED = dict(is_residual=True, patch_size=2, in_channels=12, out_channels=12)

# name: (arguments, B, T, H, W)
CASES = {
    "2.1-long": (
        config(base_dim=8, dim_mult=[1, 2, 2], temperal_downsample=[True, True]),
        (1, 17, 12, 20),
    ),
    "2.1-published-shape": (
        config(
            base_dim=8,
            decoder_base_dim=12,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            temperal_downsample=[False, True, True],
            scale_factor_spatial=8,
        ),
        (3, 5, 24, 40),
    ),
    "2.1-with-a-remainder": (
        config(
            base_dim=6,
            dim_mult=[1, 3, 2],
            temperal_downsample=[True, False],
            scale_factor_temporal=2,
        ),
        (1, 9, 13, 10),
    ),
    "2.1-one-frame": (
        config(
            base_dim=8,
            z_dim=6,
            dim_mult=[2, 1, 2, 1],
            temperal_downsample=[True, False, True],
            scale_factor_spatial=8,
        ),
        (3, 1, 40, 24),
    ),
    "2.2-long": (
        config(base_dim=8, dim_mult=[1, 2, 2], temperal_downsample=[True, True])
        | PATCHED
        | dict(scale_factor_spatial=8),
        (1, 17, 24, 40),
    ),
    "2.2-published-shape": (
        config(
            base_dim=8,
            decoder_base_dim=12,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            temperal_downsample=[False, True, True],
        )
        | PATCHED
        | dict(scale_factor_spatial=16),
        (1, 5, 48, 16),
    ),
    "2.2-without-patches": (
        config(
            base_dim=6,
            dim_mult=[1, 2, 2],
            temperal_downsample=[True, False],
            scale_factor_temporal=2,
            is_residual=True,
        ),
        (3, 9, 12, 20),
    ),
    "2.2-one-frame": (
        config(
            base_dim=8,
            z_dim=6,
            dim_mult=[1, 2, 2],
            temperal_downsample=[False, True],
            scale_factor_temporal=2,
            scale_factor_spatial=12,
            is_residual=True,
            patch_size=3,
            in_channels=27,
            out_channels=27,
        ),
        (3, 1, 36, 60),
    ),
}


@pytest.fixture(params=CASES, ids=str)
def pair(request, randomise, saved):
    """The reference, our codec with its weights, and the shape of a clip."""
    arguments, shape = CASES[request.param]
    reference = randomise(AutoencoderKLWan(**arguments))
    with torch.no_grad():
        # Most pixels stay inside the clamp, where they say something.
        reference.decoder.conv_out.weight *= 0.2
    module, params = load_pretrained(saved(reference))
    assert isinstance(module, WanVAE)
    return reference, module, params, shape


def clip(shape, seed=0):
    """Random pixels, channels last, in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def channels_last(tensor):
    """[B, C, T, H, W] of theirs as [B, T, H, W, C]."""
    return tensor.permute(0, 2, 3, 4, 1)


def channels_first(array):
    """[B, T, H, W, C] of ours as [B, C, T, H, W]."""
    return torch.from_numpy(np.asarray(array)).permute(0, 4, 1, 2, 3)


def run(module, params, x, method, *arguments):
    """One compiled call of a method."""
    call = jax.jit(
        lambda p, x: module.apply({"params": p}, x, *arguments, method=method),
        # A third of the compilation, which is nearly all of these tests' time.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(call(params, x))


def test_encode_and_decode(pair, relative_error, record_property):
    reference, module, params, shape = pair
    video = clip(shape)
    with torch.no_grad():
        means = channels_last(reference.encode(channels_first(video)).latent_dist.mode())
        pixels = channels_last(reference.decode(channels_first(means)).sample)
    assert means.std(dim=(1, 2, 3)).min() > 1e-2 and (pixels.abs() < 1).float().mean() > 0.5
    encode_error = relative_error(run(module, params, video, "encode"), means)
    decode_error = relative_error(run(module, params, means.numpy(), "decode"), pixels)
    record_property("parity_error", max(encode_error, decode_error))
    assert max(encode_error, decode_error) <= TOLERANCE


TILED = {
    "2.1": config(
        base_dim=8,
        dim_mult=[1, 2],
        temperal_downsample=[True],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    ),
    "2.2": config(base_dim=8, dim_mult=[2, 2], temperal_downsample=[True], scale_factor_temporal=2)
    | PATCHED,
}


@pytest.mark.parametrize("name", TILED)
def test_tiles(name, randomise, relative_error):
    reference = randomise(AutoencoderKLWan(**TILED[name]), seed=1)
    with torch.no_grad():
        reference.decoder.conv_out.weight *= 0.2
    module = FAMILY.read_config(dict(reference.config), "float32")
    params = from_reference(module, reference)
    ratio, patch = module.config.space_factor, module.config.patch
    tile, stride = (4 * ratio, 3 * ratio), (3 * ratio, 2 * ratio)
    latents = np.random.default_rng(2).normal(size=(1, 2, 7, 6, 4)).astype(np.float32)
    video = clip((1, 1, 7 * ratio, 6 * ratio))

    def enable(tile, stride):
        reference.enable_tiling(tile[0], tile[1], stride[0], stride[1])

    enable(tile, stride)
    with torch.no_grad():
        pixels = channels_last(reference.decode(channels_first(latents)).sample)
        # The reference's encoder measures tiles after patches are cut.
        enable([size // patch for size in tile], [size // patch for size in stride])
        means = channels_last(reference.encode(channels_first(video)).latent_dist.mode())
    assert relative_error(run(module, params, latents, "decode_tiled", tile, stride), pixels) <= (
        TOLERANCE
    )
    assert relative_error(run(module, params, video, "encode_tiled", tile, stride), means) <= (
        TOLERANCE
    )
    # Seams tell tiles from the whole picture: the test would see it if none were cut.
    assert relative_error(run(module, params, latents, "decode"), pixels) > 10 * TOLERANCE


def from_reference(module, reference):
    """Our parameters from a state dict, through the table alone."""
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    params = {}
    for entry in FAMILY.table(module):
        *folders, leaf = entry.ours.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = entry.to_ours(tensors.pop(entry.theirs))
    assert not tensors
    return params


def test_weights_come_back_unchanged(pair, tmp_path):
    reference, module, params, _ = pair
    save_pretrained(module, params, tmp_path / "ours")
    again = AutoencoderKLWan.from_pretrained(tmp_path / "ours")
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    differing = {
        key
        for key, value in reference.config.items()
        if not key.startswith("_") and again.config[key] != value
    }
    # Written out where the original left it to the encoder's width.
    assert differing <= {"decoder_base_dim"}
    assert FAMILY.read_config(dict(again.config), "float32") == module


@pytest.mark.parametrize("name, millions", [("wan2.1", 126.9), ("wan2.2", 704.7)])
def test_published_sizes(name, millions):
    module = WanVAE(WanVAEConfig(**WAN_VAE_SIZES[name]))
    ours = sum(x.size for x in jax.tree.leaves(nn.meta.unbox(FAMILY.shapes(module))))
    with torch.device("meta"):
        reference = AutoencoderKLWan(**FAMILY.write_config(module))
    assert ours == sum(p.numel() for p in reference.parameters())
    assert ours / 1e6 == pytest.approx(millions, abs=0.05)


def test_sizes_of_2_1_are_the_references_defaults():
    module = WanVAE(WanVAEConfig(**WAN_VAE_SIZES["wan2.1"]))
    with torch.device("meta"):
        defaults = AutoencoderKLWan().config
    written = FAMILY.write_config(module)
    assert {key: defaults[key] for key in written} == written | {"decoder_base_dim": None}
