"""Packing: nothing lost, nothing too full, little wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_events import lengths_like_the_data

from wallwm_jax.input.packing import action_capacity, epoch_plan, pack, packing_report


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    st.integers(1, 3).flatmap(
        lambda k: st.tuples(
            st.lists(st.tuples(*[st.integers(0, 9)] * k), max_size=40),
            st.tuples(*[st.integers(9, 30)] * k),
        )
    )
)
def test_every_item_once_and_no_bin_too_full(case):
    sizes, capacity = case
    sizes = np.array(sizes, int).reshape(len(sizes), len(capacity))
    bins = pack(sizes, capacity)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(sizes)))
    assert all(chosen and (sizes[chosen].sum(0) <= capacity).all() for chosen in bins)
    assert pack(sizes, capacity) == bins


def test_one_resource_is_best_fit_decreasing():
    # 7+3, 6+4 and 5+5 fill three bins of 10; taking them as they come needs four.
    assert pack(np.array([5, 3, 6, 5, 4, 7]), 10) == [[5, 1], [2, 4], [0, 3]]


def test_items_that_cannot_fit_are_named():
    with pytest.raises(ValueError, match=r"item 1 of size \(3, 50\) does not fit .* \(12, 40\)"):
        pack(np.array([[2, 8], [3, 50]]), (12, 40))
    with pytest.raises(ValueError, match="2 sizes but capacity"):
        pack(np.array([[2, 8]]), (12,))


@pytest.mark.parametrize("frames_capacity", [12, 14, 16])
@pytest.mark.parametrize("events", [512, 1024, 2000])
def test_little_is_wasted_on_lengths_like_the_data(frames_capacity, events):
    frames, steps = lengths_like_the_data(events, seed=events)
    assert abs(np.median(steps) - 15) <= 1
    actions = action_capacity(frames, steps, frames_capacity)
    sizes = np.stack([frames, steps, np.ones_like(steps)], axis=1)
    capacity = (frames_capacity, actions, frames_capacity // 2)
    for epoch in range(2):
        plan = epoch_plan(sizes, capacity, seed=0, epoch=epoch)
        report = packing_report(frames, steps, plan, frames_capacity, actions)
        assert report["video_tokens_real"] >= 0.93
        assert report["action_tokens_real"] >= 0.90


def test_epochs_shuffle_and_keep_everything():
    frames, steps = lengths_like_the_data(300, seed=0)
    sizes = np.stack([frames, steps], axis=1)
    plans = [
        epoch_plan(sizes, (12, 60), seed, epoch, window=100) for seed in (0, 1) for epoch in (0, 1)
    ]
    for plan in plans:
        assert sorted(i for chosen in plan for i in chosen) == list(range(300))
    assert plans[0] == epoch_plan(sizes, (12, 60), 0, 0, window=100)
    assert all(plans[i] != plans[j] for i in range(4) for j in range(i))
    # Sequences must not come sorted by how long their events are.
    longest = [max(steps[chosen]) for chosen in plans[0]]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_action_capacity_holds_the_longest_event():
    assert action_capacity(np.array([2, 2, 2, 7]), np.array([1, 1, 1, 48]), 7) >= 48
    # All events alike: three of (4 frames, 20 steps) fit 12 frames, so 60 steps.
    assert action_capacity(np.full(50, 4), np.full(50, 20), 12) == 60
    with pytest.raises(ValueError, match="empty"):
        action_capacity(np.zeros(0, int), np.zeros(0, int), 12)


def test_report_counts_real_tokens():
    frames, steps = np.array([2, 3, 4]), np.array([8, 12, 20])
    report = packing_report(frames, steps, [[0, 1], [2]], 6, 25)
    assert report["video_tokens_real"] == pytest.approx(9 / 12)
    assert report["action_tokens_real"] == pytest.approx(40 / 50)
    assert report["example"] == [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
