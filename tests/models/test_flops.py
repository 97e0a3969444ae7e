"""The hand count against the programs themselves: product by product, and XLA's own figure."""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from wallwm_jax.models import attention, rope
from wallwm_jax.models.action_tower import ActionConfig, ActionTower
from wallwm_jax.models.flops import (
    Sequence,
    action_end_flops,
    action_layer_flops,
    forward_flops,
    layer_flops,
    rotation_flops,
    text_layer_flops,
    token_layer_flops,
)
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder
from wallwm_jax.models.video_tower import VideoConfig, VideoTower
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT

FIVE_B = WAN_SIZES["wan2.2-ti2v-5b"]


def products(jaxpr: Any) -> Iterator[int]:
    """FLOPs of every dot_general of a program, loops multiplied out."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted, _ = eqn.params["dimension_numbers"][0]
            left = eqn.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            yield 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for inside in _inside(eqn.params):
            yield from (times * n for n in products(inside))


def _inside(params: dict) -> Iterator[Any]:
    for value in params.values():
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value


def shape(*size: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, jnp.dtype(dtype))


def traced(module: nn.Module, *args: jax.ShapeDtypeStruct) -> jax.stages.Traced:
    """The forward of a module, nothing allocated."""
    params = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.jit(module.apply).trace(nn.meta.unbox(params), *args)


def small(**changes: object) -> WanConfig:
    sizes = dict(width=24, heads=2, layers=3, ffn=40, in_channels=6, out_channels=6, text_width=10)
    return WanConfig(**sizes | changes)


@pytest.mark.parametrize(
    "config, times",
    [
        (small(), 1),
        (small(patch=(1, 1, 2)), "tokens"),
        (small(in_channels=16, image_width=14), 1),
    ],
    ids=["one time", "a time per token", "picture"],
)
def test_wan_is_counted_to_the_last_product(config, times):
    batch, frames, height, width = 2, 3, 4, 6
    tokens = height // config.patch[1] * width // config.patch[2]
    sequence = Sequence(
        frames=frames,
        frame_tokens=tokens,
        text=7,
        times=frames * tokens if times == "tokens" else 1,
        picture=0 if config.image_width is None else 5,
    )
    program = traced(
        WanDiT(config),
        shape(batch, frames, height, width, config.in_channels),
        shape(batch, sequence.times) if times == "tokens" else shape(batch),
        shape(batch, 7, config.text_width),
        *([] if config.image_width is None else [shape(batch, 5, config.image_width)]),
    )
    counted = sum(products(program.jaxpr.jaxpr))
    assert counted == batch * sum(forward_flops(config, sequence).values())


@pytest.mark.parametrize("views", [1, 3])
def test_views_add_their_own_attention(views):
    config, frames, captions, words = small(), 4, 2, 5
    program = traced(
        VideoTower(VideoConfig(wan=config, views=views)),
        shape(1, views, frames, 4, 6, 6),
        shape(1, frames, 1),
        shape(1, captions, words, config.text_width),
        shape(1, captions, words, dtype="bool"),
        shape(1, frames, dtype="int32"),
        shape(1, frames, dtype="int32"),
        shape(1, frames, 1),
    )
    sequence = Sequence(
        frames=frames, frame_tokens=6, text=captions * words, views=views, times=frames
    )
    parts = forward_flops(config, sequence, cross_view=True, duration=True)
    assert sum(products(program.jaxpr.jaxpr)) == sum(parts.values())
    assert ("layers/view_attention" in parts) == (views > 1)


def test_tokens_cost_the_same_in_a_long_sequence():
    config = WanConfig(**FIVE_B)
    for frames in (9, 33):
        sequence = Sequence(frames=frames, frame_tokens=126, text=512)
        parts = layer_flops(config, sequence)
        assert parts["tokens"] == token_layer_flops(config) * frames * 126
        # Two operations for each weight a token meets: 6 D^2 + 2 D M of them.
        assert token_layer_flops(config) == 2 * (6 * 3072**2 + 2 * 3072 * 14336)


def test_a_training_step_of_one_5b_layer_is_4_561_tera():
    """4.561 T: forward and twice that backward, one sequence of 33 frames of 128 tokens."""
    config = WanConfig(**FIVE_B | dict(layers=1))
    forward = forward_flops(config, Sequence(frames=33, frame_tokens=128, text=512))
    assert 3 * sum(forward.values()) == pytest.approx(4.561e12, rel=1e-4)


def test_the_text_encoder_is_counted_to_the_last_product():
    config = UMT5Config(vocabulary=11, width=12, heads=2, head_dim=4, layers=3, ffn=20)
    program = traced(UMT5Encoder(config), shape(2, 7, dtype="int32"), shape(2, 7, dtype="bool"))
    assert sum(products(program.jaxpr.jaxpr)) == 3 * text_layer_flops(config, 7, captions=2)


def test_the_action_tower_is_counted_to_the_last_product():
    """Everything per noise draw but the keys and values of the video, and its places."""
    actions, events, draws = 8, 2, 3
    config = ActionConfig(
        width=12, heads=2, layers=2, ffn=20, video_width=24, views=3, action_dim=5, state_dim=4,
        steps_per_latent=2, max_latent_frames=4, frequency_width=8,
    )  # fmt: skip
    sequence = Sequence(frames=4, frame_tokens=6, text=1, views=3)
    ids = lambda n: shape(1, n, dtype="int32")  # noqa: E731

    def both(tower: ActionTower, features: Any, state: Any, steps: Any, ids: tuple) -> Any:
        cache = tower.project(features, ids[1], grid=(2, 3))
        number = jnp.zeros((1, actions))
        one = lambda x: tower(x, number, state, cache, *ids[:1] * 2, ids[1], number)  # noqa: E731
        return jax.vmap(one)(steps)

    args = (
        shape(2, 1, 3, 4, 6, 24),
        shape(1, events, 4),
        shape(draws, 1, actions, 5),
        (ids(actions), ids(4)),
    )
    tower = ActionTower(config)
    params = jax.eval_shape(nn.init(both, tower), jax.random.key(0), *args)
    program = jax.jit(nn.apply(both, tower)).trace(nn.meta.unbox(params), *args)
    layer = action_layer_flops(config, sequence, actions, events)
    ends = action_end_flops(config, sequence, actions, events)
    reader, places = layer.pop("reader"), ends.pop("places")
    # What does not depend on the draw is computed for all of them at once.
    shared = config.layers * layer["state_keys_values"] + ends["state"]
    shared += ends["time"]  # here, where the noise level is the same for all
    per_draw = config.layers * sum(layer.values()) + sum(ends.values()) - shared
    counted = sum(products(program.jaxpr.jaxpr))
    assert counted == config.layers * reader + places + shared + draws * per_draw


def test_a_swap_by_product_costs_what_is_counted_for_it(monkeypatch):
    """One product for each query and key, of each view's own and of the views' attention."""
    config, frames, captions, words = small(), 4, 2, 5
    shapes = (
        shape(1, 3, frames, 4, 6, 6),
        shape(1, frames, 1),
        shape(1, captions, words, config.text_width),
        shape(1, captions, words, dtype="bool"),
        shape(1, frames, dtype="int32"),
        shape(1, frames, dtype="int32"),
        shape(1, frames, 1),
    )
    tower = VideoTower(VideoConfig(wan=config, views=3))
    plain = sum(products(traced(tower, *shapes).jaxpr.jaxpr))
    monkeypatch.setattr(rope, "surroundings", lambda: ("tpu", (1, 1)))
    turned = sum(products(traced(tower, *shapes).jaxpr.jaxpr))
    sequence = Sequence(frames=frames, frame_tokens=6, text=captions * words, views=3, times=frames)
    assert turned - plain == config.layers * rotation_flops(config, sequence, cross_view=True)


def test_both_swaps_turn_alike_with_their_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    weight = jax.random.normal(jax.random.key(1), x.shape)
    swaps = (rope.swap_by_product, rope.swap_by_reversal)
    one, two = (jax.value_and_grad(lambda x, f=f: jnp.sum(weight * f(x)))(x) for f in swaps)
    assert jnp.array_equal(swaps[0](x), swaps[1](x)) and jnp.array_equal(one[1], two[1])
    assert jnp.array_equal(swaps[0](x.astype("bfloat16")), swaps[1](x.astype("bfloat16")))


def test_xla_counts_the_same_for_a_5b_layer(monkeypatch):
    """Within 0.5 %: XLA adds elementwise work. It counts a loop's body once, so no loops."""
    monkeypatch.setattr(attention, "LOOPED_FROM", 10**9)
    config = WanConfig(**FIVE_B | dict(layers=1, attention="xla", dtype="bfloat16"))
    program = traced(
        WanDiT(config),
        shape(1, 33, 28, 18, 48, dtype="bfloat16"),
        shape(1),
        shape(1, 512, 4096, dtype="bfloat16"),
    )
    analytic = forward_flops(config, Sequence(frames=33, frame_tokens=126, text=512))
    ratio = program.lower().cost_analysis()["flops"] / sum(analytic.values())
    assert 1 < ratio < 1.005, ratio
