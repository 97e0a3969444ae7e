"""Both forms of channel y: what is laid where, who carries noise, and that the towers read it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import run_towers, shaken, small_denoiser

from wallwm_jax.models.conditioning import (
    FORMS,
    frame_sigma,
    future_frames,
    input_channels,
    noised_frames,
    observe,
    tower_input,
)
from wallwm_jax.models.imagination import dream


@dataclasses.dataclass(frozen=True)
class Window:
    """The two fields that conditioning reads of a packed batch."""

    frame_segment: jax.Array
    frame_index: jax.Array
    # The others are there for the protocol's check only.
    action_segment: None = None
    action_index: None = None
    state: None = None
    text: None = None
    text_mask: None = None
    event_length: None = None


# Two frames of history, the anchor, two to come; then an event and padding.
WINDOW = Window(jnp.array([[1, 1, 1, 1, 1, 2, 2, 0]]), jnp.array([[-2, -1, 0, 1, 2, 0, 1, 0]]))


def test_who_is_observed_and_who_carries_noise():
    np.testing.assert_array_equal(future_frames(WINDOW), [[0, 0, 0, 1, 1, 0, 1, 0]])
    np.testing.assert_array_equal(noised_frames(WINDOW, "clean"), future_frames(WINDOW))
    np.testing.assert_array_equal(noised_frames(WINDOW, "channels"), [[1, 1, 1, 1, 1, 1, 1, 0]])
    levels = jnp.array([[0.3, 0.8]])
    np.testing.assert_allclose(
        frame_sigma(WINDOW, levels), [[0, 0, 0, 0.3, 0.3, 0, 0.8, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        frame_sigma(WINDOW, levels, "channels"), [[0.3] * 5 + [0.8] * 2 + [0]], rtol=1e-6
    )


def latents_of(seed, channels=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((1, 2, 8, 2, 2, channels)), jnp.float32)


def test_clean_lays_the_observation_in_place():
    z, clean = latents_of(0), latents_of(1)
    hidden = jnp.zeros(z.shape[:-1], bool).at[0, 1, 2, 0, 1].set(True)
    got = tower_input(z, observe(clean, WINDOW, hidden))
    np.testing.assert_array_equal(got[:, :, 3:5], z[:, :, 3:5])
    np.testing.assert_array_equal(got[:, :, :2], clean[:, :, :2])
    np.testing.assert_array_equal(
        got[0, 1, 2, 0], jnp.stack([clean[0, 1, 2, 0, 0], z[0, 1, 2, 0, 1]])
    )


def test_channels_lays_mask_and_observation_beside():
    """[noisy 3, mask 4, observed 3], the mask by Wan's own rule over raw frames."""
    z, clean = latents_of(0), latents_of(1)
    event = Window(jnp.ones((1, 8), jnp.int32), jnp.arange(8)[None])
    got = np.asarray(tower_input(z, observe(clean, event), "channels", (0.5, -1.0, 2.0)))
    assert got.shape[-1] == input_channels("channels", 3) == 10
    np.testing.assert_array_equal(got[..., :3], z)
    raw = (np.arange(1 + 4 * 7) == 0).astype(np.float32)  # 29 raw frames, the first is given
    grouped = np.concatenate([np.repeat(raw[:1], 4), raw[1:]]).reshape(8, 4)
    np.testing.assert_array_equal(
        got[..., 3:7], np.broadcast_to(grouped[None, None, :, None, None], (1, 2, 8, 2, 2, 4))
    )
    np.testing.assert_array_equal(got[:, :, 0, ..., 7:], clean[:, :, 0])
    np.testing.assert_array_equal(
        got[:, :, 1:, ..., 7:], np.broadcast_to([0.5, -1.0, 2.0], (1, 2, 7, 2, 2, 3))
    )
    hidden = jnp.zeros(z.shape[:-1], bool).at[:, 0, :, 1].set(True)
    veiled = np.asarray(tower_input(z, observe(clean, event, hidden), "channels"))
    assert not veiled[:, 0, :, 1, :, 3:].any() and veiled[:, 0, 0, 0, :, 3:7].all()


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="'beside'.*clean"):
        noised_frames(WINDOW, "beside")


@pytest.fixture(scope="module", params=FORMS)
def setting(request, batch):
    """(denoiser of this form, shaken parameters)."""
    denoiser = small_denoiser(video=dict(conditioning=request.param))
    init = jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch)
    return denoiser, shaken(nn.meta.unbox(init))


def test_the_observation_reaches_the_tower_and_the_future_does_not(setting, batch):
    """`z` stays the same: only what is observed of `batch.latents` may matter."""
    denoiser, params = setting
    sigma = frame_sigma(batch, jnp.full(batch.event_length.shape, 0.5), denoiser.conditioning)
    z = jax.random.normal(jax.random.key(1), batch.latents.shape)
    future = future_frames(batch)[:, None, :, None, None, None]

    @jax.jit
    def video(latents):
        text = denoiser.encode_text(params, batch)
        return denoiser.video_velocity(params, z, sigma, batch, text, observe(latents, batch))[0]

    base = video(batch.latents)
    np.testing.assert_array_equal(base, video(jnp.where(future, 9.0, batch.latents)))
    assert (
        np.abs(base - video(batch.latents + 1.0))[np.broadcast_to(future, base.shape)].max() > 1e-3
    )


def test_a_dream_moves_the_frames_that_carry_noise(setting, batch):
    denoiser, params = setting
    key = jax.random.key(2)

    @jax.jit
    def run(latents):
        text = denoiser.encode_text(params, batch)
        return dream(denoiser, params, latents, batch, text, key, steps=2, shift=5.0)

    out, noise = np.asarray(run(batch.latents)), jax.random.normal(key, batch.latents.shape)
    moved = np.asarray(noised_frames(batch, denoiser.conditioning))[:, None, :, None, None, None]
    np.testing.assert_array_equal(np.where(moved, 0, out), np.where(moved, 0, batch.latents))
    assert (np.abs(out - noise) > 0)[np.broadcast_to(moved, out.shape)].mean() > 0.99
    future = future_frames(batch)[:, None, :, None, None, None]
    blind = run(jnp.where(future, 99.0, batch.latents))
    np.testing.assert_array_equal(out, blind)


def test_history_frames_are_observed_and_only_the_trailing_ones_dreamt(setting, batch):
    """-1, 0, 1, ... in place of 0, 1, 2, ...: one frame of history, N trailing latents."""
    denoiser, params = setting
    window = batch.replace(frame_index=batch.frame_index - (batch.frame_segment > 0))
    moved = np.asarray(noised_frames(window, denoiser.conditioning))[:, None, :, None, None, None]
    text = jnp.zeros((*batch.text.shape, 12))
    run = jax.jit(
        lambda z: dream(denoiser, params, z, window, text, jax.random.key(2), steps=1, shift=5.0)
    )
    out = run(batch.latents)
    np.testing.assert_array_equal(np.where(moved, 0, out), np.where(moved, 0, batch.latents))
    history = (np.asarray(window.frame_index) < 0)[:, None, :, None, None, None]
    other = run(jnp.where(history, batch.latents + 1.0, batch.latents))
    trailing = np.asarray(future_frames(window))[:, None, :, None, None, None]
    assert np.abs(other - out)[np.broadcast_to(trailing, out.shape)].max() > 1e-3


def test_without_steps_the_noise_stays(setting, batch):
    denoiser, params = setting
    text, key = jnp.zeros((*batch.text.shape, 12)), jax.random.key(4)
    out = dream(denoiser, params, batch.latents, batch, text, key, steps=0, shift=5.0)
    moved = noised_frames(batch, denoiser.conditioning)[:, None, :, None, None, None]
    noise = jax.random.normal(key, batch.latents.shape)
    np.testing.assert_array_equal(out, jnp.where(moved, noise, batch.latents))


def test_packed_events_stay_apart(setting, batch):
    """Each event reads its own observation, whichever form carries it."""
    denoiser, params = setting
    changed = (batch.frame_segment == 2)[:, None, :, None, None, None]
    other = batch.replace(latents=jnp.where(changed, batch.latents + 2.0, batch.latents))
    one, two = run_towers(denoiser, params, batch)[0], run_towers(denoiser, params, other)[0]
    changed = np.broadcast_to(changed, one.shape)
    np.testing.assert_array_equal(one[~changed], two[~changed])
    assert np.abs(one - two)[changed].max() > 1e-3
