"""Frame counts: literals, and the properties every other room relies on."""

import numpy as np
import pytest

from wallwm_jax.episodes import clock


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, (1, 5)), (8, (1, 5)), (9, (2, 9)), (16, (2, 9)), (17, (3, 13)), (128, (16, 65))],
)
def test_counts_one_can_check_by_eye(length, expected):
    assert clock.event_frames(length) == expected


def test_the_paper_s_truncation():
    """17 latent frames are 65 sampled ones and span 129 raw observations."""
    steps = clock.longest_event(17)
    assert steps + 1 == 129
    assert clock.event_frames(steps) == (16, 65)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 4])
def test_properties_for_every_length(stride, group):
    for length in range(1, 70):
        latent, sampled = clock.event_frames(length, stride, group)
        assert sampled == 1 + group * latent
        # Smallest count that reaches the event's last observation.
        assert stride * (sampled - 1) >= length > stride * (sampled - 1 - group)
        assert length <= clock.longest_event(1 + latent, stride, group)
        assert length > clock.longest_event(latent, stride, group)
        shown = clock.sampled_observations(10, 10 + length, stride, group)
        assert len(shown) == sampled
        assert shown[0] == 10 and shown[-1] == 10 + length
        assert set(np.diff(shown)) <= set(range(stride + 1))
        last = clock.latent_observations(10, 10 + length, stride, group)
        assert len(last) == 1 + latent
        np.testing.assert_array_equal(last[1:], shown[group::group])


def test_the_example_in_the_module_s_docstring():
    np.testing.assert_array_equal(clock.sampled_observations(0, 7), [0, 2, 4, 6, 7])
    np.testing.assert_array_equal(clock.latent_observations(0, 7), [0, 7])


def test_an_empty_event_is_refused():
    with pytest.raises(ValueError, match="an event of 0 control steps has no frames"):
        clock.event_frames(0)
