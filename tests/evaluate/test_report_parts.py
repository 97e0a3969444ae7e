"""The report's small tools: numbers as words, bars, tags, axes, chosen frames."""

import json

import numpy as np
import pytest

from wallwm_jax.evaluate.report import (
    charts,
    closed_loop,
    images,
    markup,
    packing,
    training,
    wording,
)
from wallwm_jax.evaluate.report.bars import Bar, advantage, judge, solved_share
from wallwm_jax.evaluate.report.run_folder import filmed_episode, read_metrics


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.09124, "0.0912"),
        (0.47, "0.47"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (96.0, "96"),
        (0, "0"),
        (100, "100"),
        (1e-9, "1.00e-09"),
        (-2.5, "-2.5"),
        (float("nan"), "–"),
        (None, "–"),
        ("x", "–"),
        (True, "–"),
    ],
)
def test_figure(value, shown):
    assert wording.figure(value) == shown


def test_durations():
    assert wording.duration(7.42) == "7.4 s"
    assert wording.duration(59.99) == "1 min 00 s"
    assert wording.duration(185) == "3 min 05 s"
    assert wording.duration(3720) == "1 h 02 min"


def test_comparisons_keep_their_sign():
    assert wording.closer(0.37, 1.0) == "63 % closer"
    assert wording.closer(1.12, 1.0) == "12 % further away"
    assert wording.closer(None, 1.0) == "not measured against"
    assert wording.below(1.0, 0) is None


def test_a_bar_is_met_missed_or_not_measured():
    assert Bar(name="", value=0.60, show=str, least=0.60).met is True
    assert Bar(name="", value=0.59, show=str, least=0.60).met is False
    assert Bar(name="", value=None, show=str, least=0.60).met is None
    assert Bar(name="", value=1.0, show=str, most=1.0, strict=True).met is False
    assert Bar(name="", value=1201.0, show=str, most=1200.0).met is False


def test_bars_follow_the_numbers():
    action = {
        "mae": 0.1,
        "mae_mean_trajectory": 0.2,
        "mae_mean_caption": 0.15,
        "mae_wrong_observation": 0.11,
    }
    loop = {
        "a": {"task_progress": 50, "random_task_progress": 10, "success": 0, "episodes": 4},
        "b": {"task_progress": 30, "random_task_progress": 20, "success": 0, "episodes": 2},
    }
    assert advantage(loop) == 25
    met = [bar.met for bar in judge({"action": action, "closed_loop": loop})]
    assert met == [False, True, False, None, None, False, False, False, None, None]
    loop["b"]["success"] = 1
    assert solved_share(loop) == 0.25


def test_text_is_escaped_and_markup_is_not():
    inner = markup.tag("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert markup.tag("p", inner, " & ", None, class_="x", title='"', hidden=True, id=None) == (
        '<p class="x" title="&quot;" hidden><b>1 &lt; 2</b> &amp; </p>'
    )
    with pytest.raises(ValueError, match="takes no children"):
        markup.tag("br", "text")


@pytest.mark.parametrize(
    "low, high", [(0.0, 10.0), (-0.3, 0.31), (1e-5, 2e-5), (3.0, 4e4), (-7.0, -6.5)]
)
def test_ticks_are_round_even_and_inside(low, high):
    marks = charts.ticks(low, high)
    assert 2 <= len(marks) <= 6
    assert all(low <= m <= high for m in marks)
    steps = np.diff(marks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:e}"[0] in "125"


def test_log_ticks():
    np.testing.assert_allclose(charts.log_ticks(0.08, 2.2), [0.1, 0.2, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(charts.log_ticks(1e-4, 1.0), [1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_axis_ends_map_to_ends():
    up = charts.Axis(low=0.1, high=10.0, start=100.0, stop=0.0, log=True)
    np.testing.assert_allclose(up.place(np.array([0.1, 1.0, 10.0])), [100, 50, 0])


def test_charts_survive_odd_values():
    for y in ([np.nan, np.nan], [1.0, 1.0], [0.0, -1.0], [np.inf, 2.0]):
        line = charts.Line(role="model", x=np.array([0.0, 0.0]), y=np.array(y))
        for log in (False, True):
            drawn = charts.line_chart([line], alt="a", unit="u", x_label="x", log=log)
            assert "nan" not in drawn and "inf" not in drawn


def test_spread_keeps_both_ends():
    assert images.spread(17, 5).tolist() == [0, 4, 8, 12, 16]
    assert images.spread(3, 9).tolist() == [0, 1, 2]
    assert images.spread(1, 9).tolist() == [0]


def test_tile_puts_frames_where_they_belong():
    frames = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(3, axis=-1)
    assert images.tile(frames, gap=1)[..., 0].tolist() == [
        [0, 128, 1, 128, 2],
        [128] * 5,
        [3, 128, 4, 128, 5],
    ]


def test_key_frames_show_every_event_and_the_end():
    event = np.array([0] * 10 + [1] + [2] * 9)
    for columns in (1, 3, 5, 8, 40):
        chosen = closed_loop.key_frames(event, columns)
        assert set(event[chosen]) == {0, 1, 2} and chosen[-1] == 19
        assert len(chosen) <= max(columns, 4) and (np.diff(chosen) > 0).all()


def test_the_filmed_episode_is_the_first_solved_or_else_the_first():
    episodes = [{"seed": 1, "success": False}, {"seed": 2, "success": True}]
    assert filmed_episode(episodes)["seed"] == 2
    assert filmed_episode(episodes[:1])["seed"] == 1
    assert filmed_episode([]) is None


def test_packing_runs():
    assert packing.runs([1, 1, 2, 0, 0]) == [(1, 0, 2), (2, 2, 1), (0, 3, 2)]


def test_smoothing_keeps_constants_and_averages_inside():
    np.testing.assert_allclose(training.smooth(np.full(9, 3.0), 5), 3.0)
    np.testing.assert_allclose(training.smooth(np.array([0.0, 3.0, 6.0, 0.0]), 3), [1.5, 3, 3, 3])


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "loss": loss} for s, loss in ((0, 3.0), (1, 2.0), (1, 2.0), (2, 1.0))]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
