"""Utilisation is a count over a peak, and nothing where one of them is unknown."""

import pytest

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.flops import (
    Sequence,
    action_end_flops,
    action_layer_flops,
    forward_flops,
)
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.train.utilisation import peak_flops, step_flops, utilisation

WAN = WanConfig(**(WAN_SIZES["tiny"] | dict(in_channels=4, out_channels=4)))


GRID = (4 // WAN.patch[1], 4 // WAN.patch[2])
TOWER = VideoConfig(wan=WAN, views=2)
ACTION = ActionConfig(
    layers=WAN.layers,
    width=32,
    heads=2,
    ffn=48,
    video_width=WAN.width,
    views=2,
    action_dim=20,
    state_dim=3,
    steps_per_latent=2,
    max_latent_frames=6,
)


def shapes(**sizes: int) -> Batch:
    base = dict(sequences=2, views=2, frames=6, height=4, width=4, channels=4)
    rest = dict(actions=8, events=2, state=3, text=5)
    return Batch.spec(BatchDims(**(base | rest | sizes)))


SHAPE = Sequence(frames=6, frame_tokens=GRID[0] * GRID[1], text=10, views=2, times=6)
FORWARD = sum(forward_flops(WAN, SHAPE, cross_view=True, duration=True).values())


def flops(trains: tuple[str, ...], draws: int = 1, **sizes: int) -> float:
    return step_flops(TOWER, ACTION, trains, GRID, shapes(**sizes), draws)


def test_a_step_is_three_forwards_of_every_sequence():
    assert flops(("video",)) == 6 * FORWARD
    assert flops(("video",), sequences=8) == 24 * FORWARD


def test_a_frozen_tower_costs_one_forward():
    layer, ends = (f(ACTION, SHAPE, 8, 2) for f in (action_layer_flops, action_end_flops))
    one = ACTION.layers * sum(layer.values()) + sum(ends.values())
    assert flops(("action",)) == 2 * (FORWARD + 3 * one)
    assert flops(("video", "action")) == 2 * 3 * (FORWARD + one)


def test_more_draws_read_the_video_once():
    each = [flops(("action",), draws) for draws in (1, 2, 3)]
    assert each[2] - each[1] == each[1] - each[0] > 0
    reader = ACTION.layers * action_layer_flops(ACTION, SHAPE, 8, 2)["reader"]
    assert each[0] - (each[1] - each[0]) >= 2 * (FORWARD + 3 * reader)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H200 NVL", 989e12), ("cpu", None)],
)
def test_peaks_are_of_the_kind_and_all_devices(kind, peak):
    assert peak_flops(kind, 2) == (None if peak is None else 2 * peak)


def test_what_is_unknown_is_left_out():
    assert utilisation(10.0, 2.0, 100.0) == {"mfu": 0.05}
    assert utilisation(None, 2.0, 100.0) == utilisation(10.0, 2.0, None) == {}
