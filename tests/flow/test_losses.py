"""Losses per example, checked by hand and against scipy's DCT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from wallwm_jax.flow import losses

dct_loss, packed_dct = jax.jit(losses.dct_loss), jax.jit(losses.packed_dct)
flow_loss = jax.jit(losses.flow_loss, static_argnames="example_axes")
masked_mean = jax.jit(losses.masked_mean)


def test_masked_mean_by_hand():
    error = jnp.array([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [jnp.nan, jnp.inf]]])
    mask = jnp.array([[True, True], [True, False]])
    weight = jnp.array([[1.0, 10.0], [4.0, 1.0]])
    loss = masked_mean(error, mask, weight=weight)
    # (1 + 3 + 50 + 70) / 4 and (8 + 8) / 2: the weight is not in the divisor.
    np.testing.assert_allclose(loss.mean, [31, 8])
    np.testing.assert_array_equal(loss.count, [4, 2])


def test_nothing_real_is_zero_not_nan():
    loss = masked_mean(jnp.ones((2, 3)), jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(loss.mean, 0)
    assert losses.reduce_mean(loss) == 0 and losses.reduce_mean(loss, by="example") == 0


def test_padding_does_not_reach_loss_or_gradient():
    truth = jnp.ones((2, 4, 3))
    mask = jnp.array([[True, True, False, False], [True, False, False, False]])
    predict = lambda fill: jnp.where(mask[..., None], 3.0, fill) * jnp.ones((2, 4, 3))
    gradient_of = jax.jit(jax.grad(lambda x: losses.reduce_mean(flow_loss(x, truth, mask))))
    for fill in (0.0, 1e30, jnp.inf):
        np.testing.assert_allclose(flow_loss(predict(fill), truth, mask).mean, [4, 4])
        gradient = np.asarray(gradient_of(predict(fill)))
        np.testing.assert_array_equal(gradient[~np.asarray(mask)], 0)
        np.testing.assert_allclose(gradient[np.asarray(mask)], 2 * 2 / 9, rtol=1e-6)


def test_example_axes_keep_noise_levels_apart():
    prediction = jnp.arange(24.0).reshape(2, 3, 4)  # [K, B, A]
    loss = flow_loss(prediction, jnp.zeros_like(prediction), example_axes=2)
    np.testing.assert_allclose(loss.mean, np.mean(np.arange(24.0).reshape(2, 3, 4) ** 2, axis=-1))


def test_reduction_by_element_and_by_example():
    loss = losses.PerExample(jnp.array([1.0, 4.0, 0.0]), jnp.array([3.0, 1.0, 0.0]))
    assert losses.reduce_mean(loss) == pytest.approx(7 / 4)
    assert losses.reduce_mean(loss, by="example") == pytest.approx(5 / 2)
    with pytest.raises(ValueError, match="by='token'"):
        losses.reduce_mean(loss, by="token")


def test_tube_weight():
    got = losses.tube_weight(jnp.array([[True, False]]), 0.25)
    np.testing.assert_array_equal(got, [[0.25, 1]])


def packed(lengths, capacity, seed=0):
    """One packed sequence: (x, segment, index), events then padding."""
    rng = np.random.default_rng(seed)
    segment, index = np.zeros((1, capacity), np.int32), np.zeros((1, capacity), np.int32)
    start = 0
    for event, length in enumerate(lengths, 1):
        segment[0, start : start + length] = event
        index[0, start : start + length] = np.arange(length)
        start += length
    x = rng.normal(size=(1, capacity, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(segment), jnp.asarray(index)


def test_dct_equals_scipy_on_every_packed_event():
    x, segment, index = packed([5, 1, 8], 17)
    got = np.asarray(packed_dct(x, segment, index))
    for start, stop in ((0, 5), (5, 6), (6, 14)):
        want = scipy.fft.dct(np.asarray(x[0, start:stop]), type=2, norm="ortho", axis=0)
        np.testing.assert_allclose(got[0, start:stop], want, atol=1e-5)
    np.testing.assert_array_equal(got[0, 14:], 0)


def test_dct_loss_equals_its_definition():
    x, segment, index = packed([6, 4], 12)
    y, _, _ = packed([6, 4], 12, seed=1)
    sigma = jnp.where(segment == 1, 0.25, 0.5)
    real = jnp.broadcast_to((segment > 0)[..., None], x.shape).at[..., 2].set(False)
    loss = dct_loss(x, y, segment, index, sigma, real)
    total = 0.0
    for start, length, level in ((0, 6, 0.25), (6, 4, 0.5)):
        difference = np.asarray(x - y)[0, start : start + length, :2]
        spectrum = scipy.fft.dct(difference, type=2, norm="ortho", axis=0)
        decay = np.exp(-np.arange(length) / (length / 4))[:, None]
        total += (1 - level) ** 2 * np.sum(decay * spectrum**2)
    np.testing.assert_allclose(loss.mean, [total / 20], rtol=1e-5)
    np.testing.assert_array_equal(loss.count, [20])
