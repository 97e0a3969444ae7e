"""rho(L): its bounds, its middle, and that draws follow it reproducibly."""

import numpy as np
import pytest

from wallwm_jax.input.caption_drop import CaptionDrop


def test_the_law_at_its_bounds():
    rho = CaptionDrop().probability
    assert rho(1) == rho(129) == pytest.approx(0.1)
    assert rho(220) == rho(10_000) == pytest.approx(0.9)
    assert rho((129 + 220) / 2) == pytest.approx(0.5)
    # A quarter of the way a half cosine has risen by (1 - cos(pi/4)) / 2 = 14.6 %.
    assert rho(129 + 91 / 4) == pytest.approx(0.1 + 0.8 * 0.14645, abs=1e-5)
    values = [rho(length) for length in range(100, 250)]
    assert values == sorted(values)


@pytest.mark.parametrize("steps, want", [(10, 0.1), (174, 0.5), (300, 0.9)])
def test_draws_follow_the_law(steps, want):
    drop = CaptionDrop()
    dropped = [drop.drops(steps, 0, epoch, event) for epoch in range(10) for event in range(400)]
    assert np.mean(dropped) == pytest.approx(drop.probability(steps + 1), abs=0.025)
    assert np.mean(dropped) == pytest.approx(want, abs=0.035)


def test_a_draw_depends_on_seed_epoch_and_event_only():
    drop = CaptionDrop(rho_min=0.5, rho_max=0.5)
    draw = lambda *key: [drop.drops(20, *key, event) for event in range(64)]  # noqa: E731
    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(1, 0) and draw(0, 0) != draw(0, 1)


@pytest.mark.parametrize("bad", [{"rho_min": 0.95}, {"rho_max": 1.5}, {"length_min": 300}])
def test_impossible_laws_are_refused(bad):
    with pytest.raises(ValueError, match="caption drop needs"):
        CaptionDrop(**bad)
