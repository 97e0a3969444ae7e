"""Events: frames, actions and times are those of the episode."""

import numpy as np
import pytest

from wallwm_jax.episodes import action_space, clock
from wallwm_jax.episodes.record import EventSpan
from wallwm_jax.events import build, carve


@pytest.fixture
def episode(pull):
    return pull(tail=12)


@pytest.fixture
def events(episode):
    return build.events_of(episode, carve.carve(episode))


def test_frames_and_cameras_show_the_sampled_observations(episode, events):
    for event in events:
        shown = clock.sampled_observations(event.start, event.end)
        for view in episode.frames:
            np.testing.assert_array_equal(event.frames[view], episode.frames[view][shown])
            want = episode.cameras[view].extrinsics[shown]
            np.testing.assert_array_equal(event.extrinsics[view], want)
        np.testing.assert_array_equal(event.state, episode.state[event.start])


def test_executing_event_after_event_adds_up_without_drift(episode, events):
    """Actions back in the world are the commanded path of the whole episode."""
    path = [
        action_space.absolute_from(
            event.actions[:, :10],
            episode.target_position[event.start],
            episode.target_rotation[event.start],
        )
        for event in events
    ]
    positions = np.concatenate([p for p, _, _ in path])
    np.testing.assert_allclose(positions, episode.target_position[1:], atol=1e-6)
    gripper = np.concatenate([g for _, _, g in path])
    np.testing.assert_array_equal(gripper, episode.gripper_command)


def test_next_caption_and_remaining_time(episode, events):
    for event, following in zip(events, events[1:], strict=False):
        assert event.next_caption == following.captions["action"]
        step = event.remaining_seconds - following.remaining_seconds
        assert step == pytest.approx(event.length / episode.control_hz)
    assert events[-1].next_caption == ""
    assert events[0].remaining_seconds == episode.steps / episode.control_hz


@pytest.mark.parametrize(
    ("edges", "message"),
    [([(0, 10), (12, 54)], "event 1 is"), ([(0, 10), (8, 54)], "event 1 is"),
     ([(0, 10), (10, 10), (10, 54)], "event 1 is"), ([(0, 50)], "end at step 50 of 54")],
)  # fmt: skip
def test_gaps_overlaps_and_short_covers_are_refused(episode, edges, message):
    spans = [EventSpan(start=a, end=b, label="reach") for a, b in edges]
    with pytest.raises(ValueError, match=message):
        build.events_of(episode, spans)


def test_an_episode_of_mismatched_lengths_is_one_line(episode):
    # In place: the annotations, checked while tests run, refuse it at construction.
    episode.frames["ego"] = episode.frames["ego"][:-3]
    with pytest.raises(ValueError, match=r"frames\[ego\] has 52 rows but 54 steps need 55"):
        build.events_of(episode, carve.fixed_chunks(episode, 8))
