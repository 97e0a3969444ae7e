"""Events side by side: literal layout, and a refusal when they do not fit."""

import dataclasses

import numpy as np
import pytest

from wallwm_jax.input.assemble import EventItem, assemble
from wallwm_jax.input.batch import Batch, BatchDims

DIMS = BatchDims(
    sequences=1, views=2, frames=6, height=1, width=1, channels=1, actions=14, events=3,
    state=2, text=3,
)  # fmt: skip


def item(event_id: int, frames: int, steps: int) -> EventItem:
    """An event whose numbers tell where they come from: event_id + place / 100."""
    place = np.arange(frames)[:, None, None, None] / 100
    latents = np.zeros((2, frames, 1, 1, 1)) + event_id + place
    return EventItem(
        latents=latents,
        visible=np.ones((2, frames, 1, 1), bool),
        intrinsics=np.tile(np.eye(3) * event_id, (frames, 2, 1, 1)),
        extrinsics=np.tile(np.eye(4), (frames, 2, 1, 1)),
        actions=np.full((steps, 20), float(event_id)) + np.arange(steps)[:, None] / 100,
        action_mask=np.ones(20, bool),
        state=np.full(2, float(event_id)),
        text=np.array([event_id, 1, 0]),
        text_mask=np.array([True, True, False]),
        event_id=event_id,
    )


def test_the_layout_of_the_docstring():
    s = assemble([item(7, 2, 4), item(5, 3, 9)], DIMS)
    Batch.stack([s]).check(DIMS)
    assert s["frame_segment"].tolist() == [1, 1, 2, 2, 2, 0]
    assert s["frame_index"].tolist() == [0, 1, 0, 1, 2, 0]
    assert s["action_segment"].tolist() == [1] * 4 + [2] * 9 + [0]
    assert s["action_index"].tolist() == [*range(4), *range(9), 0]
    assert s["event_length"].tolist() == [4, 9, 0]
    assert s["event_id"].tolist() == [7, 5, -1]
    np.testing.assert_allclose(s["latents"][1, :, 0, 0, 0], [7, 7.01, 5, 5.01, 5.02, 0])
    np.testing.assert_allclose(s["actions"][[0, 3, 4, 12, 13], 0], [7, 7.03, 5, 5.08, 0])
    np.testing.assert_allclose(s["intrinsics"][:, 0, 0, 0], [7, 7, 5, 5, 5, 1])
    assert s["text"].tolist() == [[7, 1, 0], [5, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("size", ["frames", "actions", "events"])
def test_what_does_not_fit_is_refused(size):
    small = dataclasses.replace(DIMS, **{size: {"frames": 4, "actions": 12, "events": 1}[size]})
    with pytest.raises(ValueError, match=rf"events \[7, 5\] need \d+ {size}"):
        assemble([item(7, 2, 4), item(5, 3, 9)], small)
