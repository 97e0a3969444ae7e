"""Endless plans: every event once per epoch, anywhere, from any anchor, in any process."""

import concurrent.futures
import copy

import numpy as np
import pytest
from synthetic_events import lengths_like_the_data

from wallwm_jax.input.plans import EpochPlans


def make(seed=0, anchor=(0, 0), n=90):
    frames, steps = lengths_like_the_data(n, seed=1)
    return EpochPlans(np.stack([frames, steps], axis=1), (12, 60), seed, window=40, anchor=anchor)


def test_every_epoch_holds_every_event_once():
    plans, seen = make(), {}
    for index in range(100):
        epoch, events = plans.locate(index)
        seen.setdefault(epoch, []).extend(events)
    assert len(seen) >= 3
    for epoch in sorted(seen)[:-1]:
        assert sorted(seen[epoch]) == list(range(90))


def test_random_access_is_the_same_as_reading_in_order():
    forward = make()
    want = [forward.locate(i) for i in range(150)]
    order = np.random.default_rng(0).permutation(150)
    plans = make()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(plans.locate, order.tolist())) == [want[i] for i in order]


def test_an_anchor_skips_what_lies_behind():
    plans = make()
    anchor = plans.anchor_of(110)
    assert anchor[0] >= 2 and anchor[1] <= 110
    resumed = make(anchor=anchor)
    ahead = range(110, 140)
    assert [resumed.locate(i) for i in ahead] == [plans.locate(i) for i in ahead]
    with pytest.raises(IndexError, match="lies before"):
        resumed.locate(anchor[1] - 1)


def test_copies_for_other_processes_agree():
    plans = make()
    plans.locate(50)
    assert copy.deepcopy(plans).locate(77) == plans.locate(77)


def test_seeds_differ_and_nothing_is_not_a_plan():
    assert make(seed=0).locate(0) != make(seed=1).locate(0)
    with pytest.raises(ValueError, match="no events"):
        make(n=0)
