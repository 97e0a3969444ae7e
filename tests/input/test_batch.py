"""The batch contract: fakes keep every rule, and `check` sees every broken one."""

import dataclasses

import jax
import numpy as np
import pytest

from wallwm_jax.geometry.cameras import Cameras
from wallwm_jax.geometry.sight_cone import multi_view_mask
from wallwm_jax.input.batch import Batch, BatchDims

DIMS = BatchDims(
    sequences=4, views=3, frames=16, height=4, width=4, channels=2, actions=76, events=8,
    state=5, text=6,
)  # fmt: skip
TIGHT = BatchDims(
    sequences=2, views=1, frames=2, height=1, width=1, channels=1, actions=3, events=1,
    state=1, text=1,
)  # fmt: skip


@pytest.mark.parametrize("dims", [DIMS, TIGHT, dataclasses.replace(DIMS, frames=5, events=2)])
@pytest.mark.parametrize("steps_per_frame", [1, 8])
def test_fake_keeps_the_rules(dims, steps_per_frame):
    for seed in range(10):
        Batch.fake(dims, seed, steps_per_frame).check(dims, steps_per_frame)


def test_fake_shows_what_packing_brings():
    batches = [Batch.fake(DIMS, seed) for seed in range(4)]
    for batch in batches:
        assert ((batch.event_id >= 0).sum(1) >= 2).all()  # several events per sequence
        assert (batch.frame_segment == 0).any() and (batch.action_segment == 0).any()
    used = np.concatenate([b.text_mask[b.event_id >= 0].sum(-1) for b in batches])
    assert (used == 1).any() and (used > 1).any()  # empty captions and real ones
    assert any((~b.visible[:, :, 0]).any() for b in batches)  # a synthetic border


def test_fake_is_a_function_of_its_seed():
    same, other = Batch.fake(DIMS, 0), Batch.fake(DIMS, 1)
    jax.tree.map(np.testing.assert_array_equal, Batch.fake(DIMS, 0), same)
    assert not np.array_equal(same.latents, other.latents)


def test_fake_cameras_see_each_other():
    batch = Batch.fake(DIMS, 0)
    keys = (batch.frame_segment > 0) & (batch.frame_index == 0)
    cameras = Cameras(
        intrinsics=batch.intrinsics[keys], extrinsics=batch.extrinsics[keys], width=32, height=32
    )
    mask = jax.jit(lambda c: multi_view_mask(c, (4, 4), (0.2, 3.0), 1.0))(cameras)
    across = np.asarray(mask).reshape(-1, 3, 16, 3, 16)[:, 0, :, 1]
    assert across.any((1, 2)).all() and not across.all()


def test_spec_is_the_shape_of_a_batch():
    batch = Batch.fake(DIMS, 3)
    shapes = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), Batch.spec(DIMS))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), batch)


def test_a_batch_is_a_tree_of_anything():
    batch = Batch.fake(TIGHT, 0)
    jax.tree.map(lambda x: None, batch)
    jax.jit(lambda b: b)(batch).check(TIGHT)


def _edit(name, place, value):
    """A batch with one number changed."""
    batch = Batch.fake(DIMS, 0)
    array = np.array(getattr(batch, name))
    array[place] = value
    return batch.replace(**{name: array})


BROKEN = {
    "wrong event length": ("event_length", (0, 0), 99, "event_length"),
    "gap in segments": ("frame_segment", (0, 0), 0, "frame_segment"),
    "segment out of order": ("frame_segment", (0, 0), 2, "frame_segment"),
    "index does not count": ("frame_index", (1, 0), 3, "frame_index"),
    "action index does not count": ("action_index", (1, 0), 3, "action_index"),
    "id missing": ("event_id", (0, 1), -1, "event_id"),
    "caption without a key": ("text_mask", (0, 0), False, "text_mask"),
    "unused slot with text": ("text_mask", (0, -1), True, "text_mask"),
    "masked action": ("actions", (0, 0, 19), 1.0, "actions"),
    "action in padding": ("actions", (1, -1), 1.0, "actions"),
    "visible padding": ("visible", (1, 0, -1), True, "visible"),
    "not a number": ("state", (0, 0, 0), np.nan, "state"),
    "camera that scales": ("extrinsics", (0, 0, 0, 0, 0), 7.0, "extrinsics"),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.replace(" ", "-"))
def test_check_names_what_is_broken(case):
    name, place, value, word = BROKEN[case]
    with pytest.raises(ValueError, match=word) as error:
        _edit(name, place, value).check(DIMS)
    assert "\n" not in str(error.value)


def test_check_sees_shapes_types_and_crowded_frames():
    batch = Batch.fake(DIMS, 0)
    with pytest.raises(ValueError, match="axis F should be 15"):
        batch.check(dataclasses.replace(DIMS, frames=15))
    with pytest.raises(ValueError, match="int64"):
        batch.replace(text=batch.text.astype(np.int64)).check()
    with pytest.raises(ValueError, match="axis A"):
        batch.replace(action_index=batch.action_index[:, :-1]).check()
    with pytest.raises(ValueError, match="at most 1 per frame"):
        batch.check(DIMS, steps_per_frame=1)


def test_dims_must_be_positive():
    with pytest.raises(ValueError, match="BatchDims.views = 0"):
        dataclasses.replace(DIMS, views=0)
