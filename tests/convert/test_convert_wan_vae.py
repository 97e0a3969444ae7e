"""The codecs' config.json and table: strict, complete, the same both ways."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from wallwm_jax.convert import ConvertError
from wallwm_jax.convert.wan_vae import FAMILY
from wallwm_jax.models.wan_vae import WAN_VAE_SIZES, WanVAE, WanVAEConfig, normalise_latents


def codec(name):
    return WanVAE(WanVAEConfig(**WAN_VAE_SIZES[name]))


@pytest.mark.parametrize("name", WAN_VAE_SIZES)
def test_config_there_and_back(name):
    module = codec(name)
    assert FAMILY.read_config(FAMILY.write_config(module), "float32") == module


def test_an_empty_config_is_the_codec_of_2_1():
    assert FAMILY.read_config({"_class_name": "AutoencoderKLWan"}, "float32") == codec("wan2.1")


def test_the_published_key_without_meaning_is_passed_over():
    published = FAMILY.write_config(codec("wan2.2")) | {"clip_output": False}
    assert FAMILY.read_config(published, "bfloat16").config.param_dtype == "bfloat16"


@pytest.mark.parametrize("name", ["tiny-2.1", "tiny-2.2"])
def test_every_parameter_has_one_entry_of_its_shape(name):
    module = codec(name)
    leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(FAMILY.shapes(module)))
    shapes = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    entries = FAMILY.table(module)
    assert sorted(entry.ours for entry in entries) == sorted(shapes)
    assert len({entry.theirs for entry in entries}) == len(entries)
    ranks = {"weight": {4, 5}, "bias": {1}, "gamma": {3, 4}}
    for entry in entries:
        assert len(entry.their_shape(shapes[entry.ours])) in ranks[entry.theirs.split(".")[-1]]


def test_down_blocks_are_flat_in_2_1_and_nested_in_2_2():
    # One block per stage: 2.1 counts block, resampler, block, resampler, ...
    def theirs(name):
        return {entry.ours: entry.theirs for entry in FAMILY.table(codec(name))}

    place = "encoder/stage_1/resample/time/kernel"
    assert theirs("tiny-2.1")[place] == "encoder.down_blocks.3.time_conv.weight"
    assert theirs("tiny-2.2")[place] == "encoder.down_blocks.1.downsampler.time_conv.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (dict(widths=[1]), "key 'widths'"),
        (dict(attn_scales=[0.5]), "attn_scales is .0.5."),
        (dict(z_dim="16"), "z_dim is '16'; it must be int"),
        (dict(z_dim=None), "z_dim is None"),
        (dict(is_residual=1), "is_residual is 1; it must be bool"),
        (dict(dim_mult=[1, 2.5]), "dim_mult is .1, 2.5.; it must be a list of int"),
        (dict(temperal_downsample=[True]), "time has 1 entries for 4 multipliers"),
    ],
)
def test_what_is_not_implemented_is_refused_by_key(change, complaint):
    config = FAMILY.write_config(codec("tiny-2.1")) | change
    with pytest.raises(ConvertError, match=complaint):
        FAMILY.read_config(config, "float32")


def test_a_small_model_may_keep_the_published_defaults():
    """diffusers gives every model the statistics and factors of Wan2.1's codec."""
    sizes = dict(base_dim=8, z_dim=4, dim_mult=[1, 2], temperal_downsample=[True])
    module = FAMILY.read_config(sizes | dict(scale_factor_spatial=8), "float32")
    assert (module.config.space_factor, len(module.config.latent_mean)) == (2, 16)
    with pytest.raises(ValueError, match="16 values in latent_mean for 4 latent channels"):
        normalise_latents(module.config, np.zeros((1, 4), np.float32))
