"""The text encoder: T5's buckets, padding, and one bias per layer."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Config, UMT5Encoder, relative_bucket

CONFIG = UMT5Config(vocabulary=20, width=8, heads=2, head_dim=4, layers=2, ffn=12)


def bucket_by_hand(distance: int, buckets: int, furthest: int) -> int:
    """The published rule, one distance at a time."""
    half = buckets // 2
    base = half if distance > 0 else 0
    size, exact = abs(distance), half // 2
    if size < exact:
        return base + size
    far = exact + int(math.log(size / exact) / math.log(furthest / exact) * (half - exact))
    return base + min(far, half - 1)


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (16, 50)])
def test_buckets_against_the_rule(buckets, furthest):
    distances = np.arange(-200, 201)
    got = relative_bucket(jnp.asarray(distances)[None], buckets, furthest)[0]
    want = [bucket_by_hand(int(d), buckets, furthest) for d in distances]
    # At exact powers the logarithm may round either way.
    assert np.mean(np.asarray(got) == want) > 0.98
    assert np.abs(np.asarray(got) - want).max() <= 1


@pytest.fixture(scope="module")
def encoder():
    model = UMT5Encoder(CONFIG)
    ids = jnp.zeros((1, 6), jnp.int32)
    params = nn.meta.unbox(model.init(jax.random.key(0), ids, jnp.ones((1, 6), bool)))
    return lambda ids, mask: model.apply(params, jnp.asarray(ids), jnp.asarray(mask))


def test_padding_carries_no_meaning(encoder):
    mask = np.array([[True, True, True, False, False, False]])
    one = encoder([[3, 4, 5, 0, 0, 0]], mask)
    other = encoder([[3, 4, 5, 9, 8, 7]], mask)
    np.testing.assert_array_equal(one[:, :3], other[:, :3])


def test_order_matters(encoder):
    mask = np.ones((1, 3), bool)
    assert (
        np.abs(
            np.asarray(encoder([[3, 4, 5]], mask)) - np.asarray(encoder([[5, 4, 3]], mask))[:, ::-1]
        ).max()
        > 1e-4
    )


def test_xxl_has_the_published_size():
    model = UMT5Encoder(UMT5Config(**UMT5_SIZES["xxl"]))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    )
    count = sum(x.size for x in jax.tree.leaves(nn.meta.unbox(shapes)))
    assert count == pytest.approx(5.68e9, rel=0.01)
