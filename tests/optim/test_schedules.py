"""Learning-rate shapes: literal values at the corners."""

import jax
import numpy as np
import pytest

from wallwm_jax.optim.schedules import warmup_constant, warmup_cosine


def values(schedule, counts):
    return np.asarray(jax.vmap(schedule)(np.asarray(counts)))


def test_cosine_corners():
    got = values(warmup_cosine(101, 5, final=0.1), [0, 1, 4, 52, 100, 500])
    # Peak at count 4, end at 100, half way between them at 52.
    np.testing.assert_allclose(got, [0.2, 0.4, 1.0, 0.55, 0.1, 0.1], atol=1e-6)


def test_cosine_without_warmup_starts_at_the_peak_and_ends_at_zero():
    got = values(warmup_cosine(11, 0), range(11))
    np.testing.assert_allclose(got[[0, 5, 10]], [1, 0.5, 0], atol=1e-6)
    assert np.all(np.diff(got) < 0)


def test_constant():
    np.testing.assert_allclose(values(warmup_constant(4), [0, 3, 4, 99]), [0.25, 1, 1, 1])
    np.testing.assert_allclose(values(warmup_constant(0), [0, 1]), 1)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=10 must be in 0..9"):
        warmup_cosine(10, 10)
