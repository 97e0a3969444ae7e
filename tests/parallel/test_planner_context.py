"""What a device keeps when sequences are cut along their frames too."""

import pytest

from wallwm_jax.parallel.planner import kept_on_device


@pytest.mark.parametrize("context", [1, 2, 4])
def test_what_has_frames_is_shared_and_nothing_else_is(context):
    """Weights 1000, per sequence 70 of text, 48 for each frame; 6 of 12 sequences each."""
    found = kept_on_device(
        lambda sequences, frames: 1000 + sequences * (70 + 48 * frames),
        sequences=12,
        frames=8,
        parts=2,
        context=context,
    )
    assert found == 1000 + 6 * (70 + 48 * 8 // context)
