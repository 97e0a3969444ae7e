"""Packed = unpacked, and no token of one event reaches another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import run_towers, slots_of, unpacked


@pytest.fixture(scope="module")
def packed_out(denoiser, params, batch):
    return run_towers(denoiser, params, batch)


def test_fake_batch_packs_several_events(batch):
    assert len(slots_of(batch)) >= 4
    assert int(batch.frame_segment.max()) >= 2


def test_each_event_alone_gives_what_it_gives_packed(denoiser, params, batch, packed_out):
    video, actions, _ = packed_out
    for row, slot in slots_of(batch):
        alone, frames, steps = unpacked(batch, row, slot)
        alone_video, alone_actions, _ = run_towers(denoiser, params, alone)
        np.testing.assert_allclose(alone_video[0], video[row][:, frames], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(alone_actions[0], actions[row][steps], rtol=2e-4, atol=2e-5)


def test_no_token_reaches_another_event(denoiser, params, batch, packed_out):
    """Changing everything of slot 1 leaves slot 0 bit for bit, in both towers."""
    changed = np.asarray(batch.frame_segment) == 2
    steps = np.asarray(batch.action_segment) == 2
    noise = jax.random.normal(jax.random.key(9), batch.latents.shape)
    other = batch.replace(
        latents=jnp.where(changed[:, None, :, None, None, None], noise, batch.latents),
        actions=jnp.where(steps[..., None], 3.0, batch.actions),
        state=batch.state.at[:, 1].add(5.0),
        text=batch.text.at[:, 1].set(7),
        event_length=batch.event_length.at[:, 1].add(3),
    )
    before, after = packed_out, run_towers(denoiser, params, other)
    for row, slot in slots_of(batch):
        frames = np.asarray(batch.frame_segment[row]) == slot + 1
        own = np.asarray(batch.action_segment[row]) == slot + 1
        same_video = np.array_equal(before[0][row][:, frames], after[0][row][:, frames])
        same_action = np.array_equal(before[1][row][own], after[1][row][own])
        assert (same_video, same_action) == ((slot != 1), (slot != 1)), (row, slot)
