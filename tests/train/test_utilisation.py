"""Utilisation is a count over a peak, and nothing where one of them is unknown."""

import pytest

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.models.flops import Sequence, forward_flops
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.train.utilisation import peak_flops, step_flops, utilisation

WAN = WanConfig(**(WAN_SIZES["tiny"] | dict(in_channels=4, out_channels=4)))


GRID = (4 // WAN.patch[1], 4 // WAN.patch[2])
TOWER = VideoConfig(wan=WAN, views=2)


def shapes(**sizes: int) -> Batch:
    base = dict(sequences=2, views=2, frames=6, height=4, width=4, channels=4)
    rest = dict(actions=8, events=2, state=3, text=5)
    return Batch.spec(BatchDims(**(base | rest | sizes)))


def test_a_step_is_three_forwards_of_every_sequence():
    shape = Sequence(frames=6, frame_tokens=GRID[0] * GRID[1], text=10, views=2, times=6)
    forward = sum(forward_flops(WAN, shape, cross_view=True, duration=True).values())
    assert step_flops(TOWER, GRID, shapes()) == 6 * forward
    assert step_flops(TOWER, GRID, shapes(sequences=8)) == 24 * forward


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H200 NVL", 989e12), ("cpu", None)],
)
def test_peaks_are_of_the_kind_and_all_devices(kind, peak):
    assert peak_flops(kind, 2) == (None if peak is None else 2 * peak)


def test_what_is_unknown_is_left_out():
    assert utilisation(10.0, 2.0, 100.0) == {"mfu": 0.05}
    assert utilisation(None, 2.0, 100.0) == utilisation(10.0, 2.0, None) == {}
