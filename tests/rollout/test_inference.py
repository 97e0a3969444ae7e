"""One event, imagined and acted: the cache, the schedules, what is read."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import DIMS, shaken, small_denoiser

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.imagination import future_frames
from wallwm_jax.rollout.inference import InferenceConfig, act_on_truth, dream_clean, imagine

CONFIG = InferenceConfig(video_steps=2, action_steps=3)


@pytest.fixture(scope="module")
def setting():
    denoiser = small_denoiser()
    batch = jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=5))
    params = nn.meta.unbox(jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch))
    return denoiser, shaken(params), batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Denoiser):
    """Counts traced forwards of the video tower."""

    counts: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def video_velocity(self, *arguments, **named):
        self.counts.append(1)
        return super().video_velocity(*arguments, **named)


@pytest.mark.parametrize("action_steps", [1, 4, 50])
def test_the_video_runs_once_whatever_the_number_of_action_steps(setting, action_steps):
    """One traced forward in the (scanned) sketch, one for the features, none per action step."""
    denoiser, params, batch = setting
    counting = Counting(**{f.name: getattr(denoiser, f.name) for f in dataclasses.fields(denoiser)})
    config = dataclasses.replace(CONFIG, action_steps=action_steps)
    jax.eval_shape(
        lambda p, b: imagine.__wrapped__(counting, config, p, b, jax.random.key(0)), params, batch
    )
    assert len(counting.counts) == 2


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
