"""Statistics merge exactly; normalise and unnormalise undo each other."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from synthetic_events import make_event

from wallwm_jax.input.normalise import (
    InputStatistics,
    Moments,
    Statistics,
    fit_statistics,
    normalise,
    unnormalise,
)  # fmt: skip


def test_parts_merge_to_the_whole():
    x = np.random.default_rng(0).normal(50, 0.01, (1000, 4))  # far from 0: naive sums would fail
    whole = Moments.of(x)
    parts = Moments.empty(4)
    for part in np.split(x, [1, 10, 500]):
        parts = parts.merge(Moments.of(part))
    other_way = Moments.of(x[500:]).merge(Moments.of(x[:500])).merge(Moments.empty(4))
    for merged in (parts, other_way):
        np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(merged.squares, ((x - x.mean(0)) ** 2).sum(0), rtol=1e-8)
        np.testing.assert_array_equal(merged.count, whole.count)


def test_masked_dimensions_are_not_seen():
    rows = np.ones((5, 3), np.float32)
    mixed = Moments.of(rows, np.array([True, False, False])).merge(
        Moments.of(rows * 3, np.array([True, True, False]))
    )
    assert mixed.count.tolist() == [10, 5, 0]
    statistics = Statistics.from_moments(mixed)
    np.testing.assert_allclose(statistics.mean, [2, 3, 0])
    np.testing.assert_allclose(statistics.std, [1, 1e-3, 1])  # second: constant; third: never seen


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_with_constant_and_masked_dimensions(dtype):
    rng = np.random.default_rng(1)
    x = rng.normal([0.2, -3, 0.7, 5], [0.05, 2, 0, 1], (200, 4)).astype(dtype)
    mask = np.array([True, True, True, False])
    statistics = Statistics.from_moments(Moments.of(x, mask))
    z = normalise(x, statistics, mask)
    assert z.dtype == dtype
    np.testing.assert_allclose(z[:, :2].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z[:, :2].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(z[:, 2], 0, atol=1e-9)  # the mean itself rounds
    assert not z[:, 3].any()
    back = unnormalise(z, statistics, mask)
    np.testing.assert_allclose(back[:, :3], x[:, :3], rtol=1e-5, atol=1e-6)
    assert not back[:, 3].any()


def test_the_same_pair_serves_jax_arrays_and_rows_of_masks():
    statistics = Statistics(mean=np.array([1.0, 2.0]), std=np.array([2.0, 4.0]))
    x = jnp.array([[[3.0, 10.0]], [[5.0, 6.0]]])
    mask = jnp.array([[[True, True]], [[True, False]]])
    z = normalise(x, statistics, mask)
    np.testing.assert_allclose(z, [[[1, 2]], [[2, 0]]])
    np.testing.assert_allclose(unnormalise(z, statistics, mask), [[[3, 10]], [[5, 0]]])


def test_fit_reads_events_and_survives_json():
    events = [make_event(i) for i in range(12)]
    statistics = fit_statistics(events)
    actions = np.concatenate([e.actions for e in events])[:, :10]
    np.testing.assert_allclose(statistics.action.mean[:10], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.action.std[:10], actions.std(0), rtol=1e-5)
    states = np.stack([e.state for e in events])
    np.testing.assert_allclose(statistics.state.mean, states.mean(0), rtol=1e-5)
    back = InputStatistics.from_json(json.loads(json.dumps(statistics.to_json())))
    for part in ("action", "state"):
        a, b = (dataclasses.asdict(getattr(s, part)) for s in (statistics, back))
        np.testing.assert_array_equal(a["mean"], b["mean"])
        np.testing.assert_array_equal(a["std"], b["std"])


def test_useless_statistics_are_refused():
    with pytest.raises(ValueError, match="no events"):
        fit_statistics([])
    for bad in ({"mean": [0.0], "std": [0.0]}, {"mean": [0.0, 1.0], "std": [1.0]}):
        with pytest.raises(ValueError, match="positive std"):
            Statistics.from_json(bad)
