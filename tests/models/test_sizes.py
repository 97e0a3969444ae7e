"""The same code expresses the published sizes; sizes that do not fit are refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from towers import small_denoiser

from wallwm_jax.models.remat import rematerialised
from wallwm_jax.models.video_tower import VideoConfig, VideoTower
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig


def count(size: str, views: int) -> int:
    """Parameters of a video tower, from shapes alone."""
    wan = WanConfig(**WAN_SIZES[size])
    tower = VideoTower(VideoConfig(wan=wan, views=views, duration=False))
    frames = jnp.zeros((1, 2), jnp.int32)

    def init(key):
        return tower.init(
            key,
            jnp.zeros((1, views, 2, 4, 4, wan.in_channels)),
            jnp.zeros((1, 2, 1)),
            jnp.zeros((1, 1, 3, wan.text_width)),
            jnp.ones((1, 1, 3), bool),
            frames,
            frames,
        )

    params = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
    own = {k: v for k, v in params.items() if k not in ("view_table", "view_modulation")}
    return sum(x.size for x in jax.tree.leaves(own))


@pytest.mark.parametrize(
    ("size", "published"),
    [("wan2.1-t2v-1.3b", 1.419e9), ("wan2.2-ti2v-5b", 5.0e9), ("wan2.1-t2v-14b", 14.29e9)],
)
def test_published_parameter_counts(size, published):
    """One view skips the cross-view branch: what is left is Wan itself."""
    assert count(size, views=1) == pytest.approx(published, rel=0.01)


def test_the_cross_view_branch_adds_one_attention_per_block():
    wan = WanConfig(**WAN_SIZES["tiny"])
    attention = 4 * (wan.width**2 + wan.width) + 2 * wan.width
    assert count("tiny", views=3) - count("tiny", views=1) == wan.layers * (
        attention + 3 * wan.width
    )


def test_unknown_remat_policy_is_named():
    with pytest.raises(ValueError, match="'some'.*full"):
        rematerialised(nn.Dense, "some")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(layers=2), "depth"),
        (dict(depth_map=(0, 1, 3)), "depth map"),
        (dict(video_width=24), "width 24"),
        (dict(views=2), "2 views"),
    ],
)
def test_towers_that_do_not_fit_are_refused(change, words):
    good = small_denoiser()
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(good, action_config=dataclasses.replace(good.action_config, **change))
    assert "\n" not in str(caught.value)
