"""Rematerialisation changes what is kept, never what comes out: gradients and product counts."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.flops import Sequence, layer_flops, recomputed_flops
from wallwm_jax.models.remat import POLICIES, SAVED, policy_of
from wallwm_jax.models.video_tower import VideoConfig, VideoTower
from wallwm_jax.models.wan_config import WanConfig

VIEWS, FRAMES, GRID, WORDS, LAYERS = 3, 2, (2, 3), 5, 2
SIZES = dict(width=24, heads=2, layers=LAYERS, ffn=40, in_channels=6, out_channels=6, text_width=10)
SHAPE = Sequence(frames=FRAMES, frame_tokens=6, text=WORDS, views=VIEWS, times=FRAMES)


def tower(policy: str) -> VideoTower:
    wan = WanConfig(**SIZES, remat=policy, gate_bias=1.0)
    return VideoTower(VideoConfig(wan=wan, views=VIEWS))


@functools.cache
def inputs() -> tuple:
    draw = np.random.default_rng(0)
    return (
        jnp.asarray(draw.normal(size=(1, VIEWS, FRAMES, 4, 6, 6)), jnp.float32),
        jnp.full((1, FRAMES, 1), 300.0),
        jnp.asarray(draw.normal(size=(1, 1, WORDS, 10)), jnp.float32),
        jnp.ones((1, 1, WORDS), bool),
        jnp.ones((1, FRAMES), jnp.int32),
        jnp.arange(FRAMES, dtype=jnp.int32)[None],
        jnp.full((1, FRAMES, 1), 12.0),
    )


@functools.cache
def params() -> Any:
    """Random everywhere, in the branches that start at zero too: their gradients must be seen."""
    draw = np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(tower("none").init, jax.random.key(0), *inputs()))
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.3, x.shape), x.dtype), shapes)


def loss(policy: str, weights: Any) -> jax.Array:
    velocity, _ = tower(policy).apply(weights, *inputs())
    return jnp.mean(jnp.square(velocity))


@functools.cache
def gradients(policy: str) -> Any:
    return jax.jit(jax.grad(functools.partial(loss, policy)))(params())


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
def test_gradients_are_those_of_keeping_everything(policy):
    plain, again = jax.tree.leaves(gradients("none")), jax.tree.leaves(gradients(policy))
    for a, b in zip(plain, again, strict=True):
        assert float(jnp.abs(a).max()) > 0
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * float(jnp.abs(a).max()) + 1e-9)


def products(jaxpr: Any) -> Iterator[int]:
    """FLOPs of every matrix product of a program, loops multiplied out."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted, _ = eqn.params["dimension_numbers"][0]
            inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            yield 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                yield from (times * n for n in products(inside))


def counted(policy: str) -> int:
    traced = jax.jit(jax.grad(functools.partial(loss, policy))).trace(params())
    return sum(products(traced.jaxpr.jaxpr))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_computed_again_is_what_the_policy_says(policy):
    """To the last product; "full" makes a step of four forwards out of three."""
    more = counted(policy) - counted("none")
    parts = recomputed_flops(WanConfig(**SIZES), SHAPE, policy, cross_view=True)
    assert more == LAYERS * sum(parts.values())
    if policy == "full":
        forward = layer_flops(WanConfig(**SIZES), SHAPE, cross_view=True)
        assert sum(parts.values()) == sum(forward.values())


def test_policies_are_ordered_by_what_they_keep():
    assert set(SAVED) == set(POLICIES) - {"none", "dots"}
    again = [
        sum(recomputed_flops(WanConfig(**SIZES), SHAPE, policy, cross_view=True).values())
        for policy in ("full", "attention", "projections", "selective")
    ]
    assert again == sorted(again, reverse=True) and len(set(again)) == len(again)


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="'some'.*selective"):
        policy_of("some")
