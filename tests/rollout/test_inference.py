"""One event, imagined and acted: the cache, the schedules, what is read."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import DIMS, products, shaken, small_denoiser

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.conditioning import future_frames, observed_frames
from wallwm_jax.rollout.inference import InferenceConfig, act, act_on_truth, dream_clean, imagine

CONFIG = InferenceConfig(video_steps=2, action_steps=3)


@pytest.fixture(scope="module")
def setting():
    denoiser = small_denoiser()
    batch = jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=5))
    params = nn.meta.unbox(jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch))
    return denoiser, shaken(params), batch


def forwards(denoiser, config, params, batch) -> tuple[int, int, int]:
    """(video forwards, times the cache is made, action forwards) of one inference.

    Counted in the program: each runs one matrix product of a shape of its own per
    layer, times the turns of the loops around it.
    """
    jaxpr = jax.make_jaxpr(lambda p: imagine(denoiser, config, p, batch, jax.random.key(0)))(params)
    video, action = denoiser.video_config.wan, denoiser.action_config
    shapes = {
        "video": (video.width, video.ffn),
        "cache": (action.video_width, action.heads, action.head_dim),  # a key and a value
        "action": (action.width, action.ffn),  # a gate and an up projection
    }
    assert len(set(shapes.values())) == 3
    seen = {name: products(jaxpr.jaxpr, shape) for name, shape in shapes.items()}
    layers = video.layers
    assert not any(count % layers for count in seen.values())
    return seen["video"] // layers, seen["cache"] // layers // 2, seen["action"] // layers // 2


@pytest.mark.parametrize("video_steps", [0, 1, 8])
@pytest.mark.parametrize("action_steps", [1, 4, 50])
def test_one_anchored_video_forward_whatever_the_number_of_action_steps(
    setting, video_steps, action_steps
):
    """Every sketch step is a forward and the anchored one comes on top: n + 1, never more."""
    denoiser, params, batch = setting
    config = InferenceConfig(video_steps=video_steps, action_steps=action_steps)
    assert forwards(denoiser, config, params, batch) == (video_steps + 1, 1, action_steps)


def test_acting_on_a_given_sketch_is_a_single_video_forward(setting):
    """`act`: the anchored forward, the cache, the action schedule, and nothing else."""
    denoiser, params, batch = setting
    text = jnp.zeros((*batch.text.shape, denoiser.text_config.width))
    jaxpr = jax.make_jaxpr(
        lambda p: act(denoiser, CONFIG, p, batch, text, batch.latents, jax.random.key(0))
    )(params)
    video = denoiser.video_config.wan
    assert products(jaxpr.jaxpr, (video.width, video.ffn)) == video.layers


def test_without_video_steps_the_tower_is_told_that_it_reads_noise(setting):
    """The level follows the latents: 1 where they are pure noise, s* where they are a sketch."""
    assert float(InferenceConfig(video_steps=0).end) == 1.0
    assert float(InferenceConfig(video_steps=1).end) == pytest.approx(0.35714, rel=1e-4)
    assert float(InferenceConfig(video_steps=1, s_star=0.0).end) == 1.0
    denoiser, params, batch = setting
    key = jax.random.key(6)
    out = imagine(denoiser, dataclasses.replace(CONFIG, video_steps=0), params, batch, key)
    noise = jax.random.normal(jax.random.split(key)[0], batch.latents.shape)
    future = future_frames(batch)[:, None, :, None, None, None]
    np.testing.assert_array_equal(out.sketch, jnp.where(future, noise, batch.latents))
    assert np.isfinite(out.actions).all()


def test_both_forms_of_conditioning_roll_out(setting):
    """With the observation beside the latents: the future cannot leak, the key frame is shown."""
    batch = setting[2]
    denoiser = small_denoiser(video=dict(conditioning="channels"))
    params = nn.meta.unbox(jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch))
    params, key = shaken(params), jax.random.key(7)
    future = future_frames(batch)[:, None, :, None, None, None]
    blind = batch.replace(latents=jnp.where(future, 99.0, batch.latents))
    one, two = (imagine(denoiser, CONFIG, params, b, key) for b in (batch, blind))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = imagine(denoiser, CONFIG, params, batch.replace(latents=batch.latents + 1), key)
    assert np.abs(one.actions - other.actions).max() > 1e-4
    shown = dream_clean(denoiser, CONFIG, 2, params, batch, key)
    observed = np.asarray(observed_frames(batch))[:, None, :, None, None, None]
    np.testing.assert_array_equal(
        np.where(observed, shown, 0), np.where(observed, batch.latents, 0)
    )
    # Inside the tower the observed frame is noised like the others.
    assert np.abs(np.where(observed, one.sketch - batch.latents, 0)).max() > 0.1


def test_only_observed_frames_are_read(setting):
    """Ground truth of the future, and the expert's actions, cannot leak."""
    denoiser, params, batch = setting
    key = jax.random.key(1)
    future = future_frames(batch)[:, None, :, None, None, None]
    blind = batch.replace(
        latents=jnp.where(future, 99.0, batch.latents), actions=batch.actions * 0 + 7
    )
    for one, two in zip(
        imagine(denoiser, CONFIG, params, batch, key),
        imagine(denoiser, CONFIG, params, blind, key),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_observed_frames_stay_clean_and_missing_dimensions_zero(setting):
    denoiser, params, batch = setting
    out = imagine(denoiser, CONFIG, params, batch, jax.random.key(2))
    observed = np.asarray(~future_frames(batch))[:, None, :, None, None, None]
    np.testing.assert_array_equal(
        np.where(observed, out.sketch, 0), np.where(observed, np.asarray(batch.latents), 0)
    )
    for row in range(DIMS.sequences):
        segment = np.asarray(batch.action_segment[row])
        mask = (
            np.asarray(batch.action_mask[row])[np.maximum(segment - 1, 0)] & (segment > 0)[:, None]
        )
        assert not np.any(np.asarray(out.actions[row])[~mask])


def test_the_sketch_is_half_dry(setting):
    """With the true velocity, s* leaves the share sigma of the noise: checked on `act_on_truth`."""
    denoiser, params, batch = setting
    out = act_on_truth(denoiser, CONFIG, params, batch, jax.random.key(3))
    future = np.asarray(future_frames(batch))
    noise = np.asarray(out.sketch) - (1 - 0.35714) * np.asarray(batch.latents)
    share = noise.transpose(0, 2, 1, 3, 4, 5)[future].std()
    assert share == pytest.approx(0.35714, rel=0.05)


def test_more_video_steps_change_the_dream_and_seeds_differ(setting):
    denoiser, params, batch = setting
    one = dream_clean(denoiser, CONFIG, 2, params, batch, jax.random.key(4))
    assert (
        np.abs(one - dream_clean(denoiser, CONFIG, 5, params, batch, jax.random.key(4))).max()
        > 1e-4
    )
    assert (
        np.abs(one - dream_clean(denoiser, CONFIG, 2, params, batch, jax.random.key(5))).max()
        > 1e-2
    )
