"""Pictures of an event: two decoders agree bit for bit, and damage has a name."""

import io

import numpy as np
import pytest
from flax import serialization
from PIL import Image

from wallwm_jax.events import build, carve, coding


def smooth(rng, height, width):
    """A picture with edges and gradients, as cameras give them."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    wave = np.stack([np.sin(9 * x + 5 * y), np.cos(7 * x * y), (x > y) - 0.5], -1)
    return np.clip(128 + 90 * wave + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (65, 51), (130, 131), (256, 256), (1, 1), (17, 200)])
def test_two_decoders_give_the_same_pixels(size):
    data = coding.encode_image(smooth(np.random.default_rng(0), *size))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(coding.decode_image(data), np.asarray(image))


def test_a_grey_picture_becomes_three_channels():
    out = io.BytesIO()
    grey = smooth(np.random.default_rng(1), 16, 24)[..., 0]
    Image.fromarray(grey).save(out, "JPEG")
    image = coding.decode_image(out.getvalue())
    assert image.shape == (16, 24, 3) and np.ptp(image, axis=-1).max() == 0


@pytest.mark.parametrize("cut", [0, 10, 100, 0.5, -30, -2])
def test_a_cut_picture_is_an_error(cut):
    data = coding.encode_image(smooth(np.random.default_rng(2), 64, 64))
    with pytest.raises(ValueError):
        coding.decode_image(data[: int(cut * len(data)) if isinstance(cut, float) else cut])


def test_a_picture_of_another_size_or_too_large_is_an_error(monkeypatch):
    data = coding.encode_image(smooth(np.random.default_rng(3), 20, 30))
    with pytest.raises(ValueError, match=r"20 x 30 pixels where \(30, 20\) are expected"):
        coding.decode_image(data, np.empty((30, 20, 3), np.uint8))
    monkeypatch.setattr(coding, "MAX_PIXELS", 599)
    with pytest.raises(ValueError, match="20 x 30 pixels"):
        coding.decode_image(data)


def record(pull) -> dict:
    """A stored event, taken apart."""
    episode = pull(0)
    event = next(iter(build.events_of(episode, carve.carve(episode))))
    return coding.decode_record(coding.encode_event(event))


@pytest.mark.parametrize("fault", ["no first", "smaller second", "empty"])
def test_a_clip_that_is_none_is_an_error(pull, fault):
    fields = record(pull)
    clip = fields["frames"]["ego"]
    if fault == "no first":
        clip[0] = None
    elif fault == "smaller second":
        clip[1] = coding.encode_image(np.zeros((8, 8, 3), np.uint8))
    else:
        fields["frames"]["ego"] = []
    with pytest.raises(ValueError, match="no first picture|8 x 8 pixels where"):
        coding.decode_event(serialization.msgpack_serialize(fields))
