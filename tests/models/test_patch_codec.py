"""The embedded codec keeps the VAE's contract: causal, 1+4N -> 1+N, invertible when full."""

import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.models.codec import Codec, copy_last_latents
from wallwm_jax.models.patch_codec import PatchCodec, fit_patch_codec


def moving_squares(count: int, frames: int = 9, size: int = 16) -> list[np.ndarray]:
    """Clips in [-1, 1]: a bright square wanders over a soft gradient."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(-0.6, 0.2, size)
    clips = []
    for _ in range(count):
        clip = np.tile(ramp[None, :, None, None], (frames, 1, size, 3))
        row, column, step = rng.integers(0, size - 4), rng.integers(0, 4), rng.integers(0, 2)
        for t in range(frames):
            left = min(column + step * t, size - 4)
            clip[t, row : row + 4, left : left + 4] = rng.uniform(0.7, 1.0, 3)
        clips.append(clip.astype(np.float32))
    return clips


@pytest.fixture(scope="module")
def clips():
    return moving_squares(24)


def codec_of(clips, channels: int):
    codec = PatchCodec(channels=channels, patch=4)
    params = {"params": fit_patch_codec(clips, channels, patch=4)}
    return (
        codec,
        lambda x, method: np.asarray(codec.apply(params, jnp.asarray(x), method=method)),
        params["params"],
    )


def test_all_channels_lose_nothing(clips):
    """48 numbers per key patch; groups have 192, so only the key is whole."""
    _, run, _ = codec_of(clips, 48)
    key = clips[0][None, :1]
    np.testing.assert_allclose(run(run(key, "encode"), "decode"), key, atol=2e-4)


def test_shapes_follow_the_rule(clips):
    _, run, _ = codec_of(clips, 6)
    assert run(np.stack(clips[:2]), "encode").shape == (2, 3, 4, 4, 6)
    assert run(np.zeros((2, 3, 4, 4, 6), np.float32), "decode").shape == (2, 9, 16, 16, 3)


def test_latents_are_causal(clips):
    _, run, _ = codec_of(clips, 6)
    clip = clips[1][None].copy()
    before = run(clip, "encode")
    clip[:, 5:] = 0.9
    after = run(clip, "encode")
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before[:, 2] - after[:, 2]).max() > 0.05


def test_more_channels_lose_less(clips):
    errors = []
    for channels in (2, 8, 24):
        _, run, _ = codec_of(clips, channels)
        video = np.stack(clips)
        errors.append(np.mean((run(run(video, "encode"), "decode") - video) ** 2))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_copying_is_the_code_of_a_still_clip(clips):
    codec, run, params = codec_of(clips, 8)
    key = run(clips[2][None, :1], "encode")
    shown = np.repeat(run(key, "decode"), 9, axis=1)
    copied = copy_last_latents(Codec(codec), params, jnp.asarray(key), 3)
    np.testing.assert_allclose(copied, run(shown, "encode"), atol=1e-4)


def test_the_fit_is_deterministic(clips):
    one, two = (fit_patch_codec(clips, 5, patch=4, seed=3) for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 4, 16, 16, 3), "4 frames"), ((1, 5, 18, 16, 3), "18x16")]
)
def test_clips_that_do_not_fit_are_refused(clips, shape, words):
    _, run, _ = codec_of(clips, 4)
    with pytest.raises(ValueError, match=words):
        run(np.zeros(shape, np.float32), "encode")
