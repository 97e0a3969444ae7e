"""The attention door and rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.attention import attend
from wallwm_jax.models.rope import axis_angles, camera_pairs, grid_angles, grid_pairs, rotate


def heads(key: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(key), shape)


def by_hand(q, k, v, allowed):
    """Loops and a softmax per query: nothing shared with the implementation."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keep = np.flatnonzero(allowed[b, t])
        scores = np.array([q[b, t, n] @ k[b, s, n] for s in keep]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = (weights[:, None] * v[b, keep, n]).sum(0) / weights.sum()
    return out


def test_segments_and_mask_against_loops():
    q, k, v = heads(0, 2, 6, 2, 4), heads(1, 2, 5, 2, 4), heads(2, 2, 5, 2, 4)
    qs = np.array([[1, 1, 2, 2, 3, 3], [1, 2, 2, 2, 1, 1]])
    ks = np.array([[1, 2, 2, 3, 1], [2, 2, 1, 1, 2]])
    mask = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.6, (2, 1, 6, 5))).copy()
    mask[:, 0, :, :] |= np.arange(5) == 1  # keep some; the rest of a row may be empty
    allowed = (qs[:, :, None] == ks[:, None]) & mask[:, 0]
    got = attend(q, k, v, segments=(jnp.asarray(qs), jnp.asarray(ks)), mask=jnp.asarray(mask))
    rows = allowed.any(-1)
    want = by_hand(*(np.asarray(x) for x in (q, k, v)), np.where(rows[..., None], allowed, True))
    np.testing.assert_allclose(np.asarray(got)[rows], want[rows], rtol=1e-5, atol=1e-6)
    assert np.isfinite(got).all()


def test_agrees_with_jax_nn():
    q, k, v = heads(0, 2, 6, 2, 8), heads(1, 2, 6, 2, 8), heads(2, 2, 6, 2, 8)
    want = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    np.testing.assert_allclose(attend(q, k, v), want, rtol=1e-5, atol=1e-6)


def test_unknown_implementation_is_named():
    q = heads(0, 1, 2, 1, 4)
    with pytest.raises(ValueError, match="'flash'.*xla"):
        attend(q, q, q, implementation="flash")


def test_rotation_keeps_norms_and_depends_on_differences_only():
    q, k = heads(0, 1, 1, 1, 12), heads(1, 1, 1, 1, 12)

    def product(a: float, b: float) -> float:
        turned = [rotate(x, axis_angles(jnp.full((1, 1), p), 6)) for x, p in ((q, a), (k, b))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(3.0, 1.0) == pytest.approx(product(12.0, 10.0), rel=1e-4)
    assert product(3.0, 1.0) != pytest.approx(product(3.0, 2.0), rel=1e-2)
    x = rotate(q, axis_angles(jnp.full((1, 1), 7.0), 6))
    assert float(jnp.linalg.norm(x)) == pytest.approx(float(jnp.linalg.norm(q)), rel=1e-6)


def test_rotation_turns_neighbouring_pairs():
    """(1, 0) turned by a right angle is (0, 1); Wan pairs channels 2i and 2i+1."""
    x = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, jnp.full((1, 1, 2), jnp.pi / 2))
    np.testing.assert_allclose(turned.ravel(), [0, 1, -1, 0], atol=1e-6)


@pytest.mark.parametrize("pairs", [5, 12, 64])
def test_pairs_are_shared_out_completely(pairs):
    assert sum(grid_pairs(pairs)) == sum(camera_pairs(pairs)) == pairs
    assert grid_pairs(64) == (22, 21, 21)  # Wan: 44, 42, 42 of 128 channels


def test_grid_angles_restart_with_the_frame_index():
    angles = grid_angles(jnp.array([[0, 1, 0, 1]]), (2, 3), 12)
    np.testing.assert_array_equal(angles[:, :2], angles[:, 2:])
    assert angles.shape == (1, 4, 6, 12)
