"""The bars a run must clear, as data, and what a run measured against each.

A bar is only judged when its numbers were measured: a smoke run without closed
loop shows "not measured", never "met".
"""

import dataclasses
import statistics
from collections.abc import Callable

from wallwm_jax.evaluate.report.wording import DASH, below, duration, figure, measured, percent

MIN_TASKS = 8
"""Closed-loop tasks over which the Task Progress bar is averaged, at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One requirement: `value >= least` or `value <= most`, shown with `show`.

    Attributes:
      value: the measured number, None when the run did not measure it.
      least, most: the bound; exactly one is set.
      strict: the bound itself does not count as met.
      note: what the number was computed from.
    """

    name: str
    value: float | None
    show: Callable[[object], str]
    least: float | None = None
    most: float | None = None
    strict: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is cleared; None when it was not measured."""
        if self.value is None:
            return None
        bound = self.most if self.least is None else self.least
        if self.strict and self.value == bound:
            return False
        return self.value <= bound if self.least is None else self.value >= bound

    @property
    def required(self) -> str:
        """The bound in words: `at least 60 %`."""
        if self.least is None:
            return f"{'below' if self.strict else 'at most'} {self.show(self.most)}"
        return f"{'more than' if self.strict else 'at least'} {self.show(self.least)}"


def advantage(closed_loop: dict[str, dict]) -> float | None:
    """Task Progress over the random policy's, in points, averaged over the tasks."""
    gains = []
    for task in closed_loop.values():
        model, random = (measured(task.get(k)) for k in ("task_progress", "random_task_progress"))
        if model is not None and random is not None:
            gains.append(model - random)
    return statistics.fmean(gains) if gains else None


def success_rate(task: dict) -> float | None:
    """Solved episodes over episodes of one task of the summary."""
    solved, episodes = measured(task.get("success")), measured(task.get("episodes"))
    return solved / episodes if solved is not None and episodes else None


def solved_share(closed_loop: dict[str, dict]) -> float | None:
    """Success rate averaged over the tasks, None without closed-loop runs."""
    rates = [rate for rate in map(success_rate, closed_loop.values()) if rate is not None]
    return statistics.fmean(rates) if rates else None


def _video_bars(video: dict) -> list[Bar]:
    """Imagined video against repeating the last observed frame: ratios of errors."""
    raw = measured(video.get("pixel_raw_mse_vs_copy_last"))
    untouched = "" if raw is None else f"; against the untouched frame {figure(raw)}"
    return [
        Bar(
            name=f"Imagined {kind}: squared error relative to repeating the last frame",
            value=measured(video.get(key)),
            most=1.0,
            strict=True,
            show=figure,
            note=note,
        )
        for kind, key, note in (
            ("latents", "mse_vs_copy_last", "in the codec's latent space"),
            ("pixels", "pixel_mse_vs_copy_last", f"both decoded by the codec{untouched}"),
        )
    ]


def _action_bars(action: dict) -> list[Bar]:
    """Actions made from the model's own imagined video, on held-out episodes."""
    mae = action.get("mae")
    swapped = below(action.get("mae_wrong_observation"), mae)
    return [
        Bar(
            name="Action error below the mean trajectory of the same label",
            value=below(mae, action.get("mae_mean_trajectory")),
            least=0.60,
            show=percent,
            note=f"{figure(mae)} against {figure(action.get('mae_mean_trajectory'))}",
        ),
        Bar(
            name="Action error below the mean trajectory of the same caption",
            value=below(mae, action.get("mae_mean_caption")),
            least=0.15,
            show=percent,
            note=f"{figure(mae)} against {figure(action.get('mae_mean_caption'))}",
        ),
        Bar(
            name="Action error added by another episode's observation",
            value=None if swapped is None else -swapped,
            least=0.20,
            show=percent,
            note=f"{figure(action.get('mae_wrong_observation'))} against {figure(mae)}",
        ),
    ]


def judge(summary: dict) -> list[Bar]:
    """Every bar of the project, filled with the numbers of one `summary.json`."""
    loop = summary.get("closed_loop") or {}
    seconds = [measured(s) for s in (summary.get("seconds") or {}).values()]
    total = sum(s for s in seconds if s is not None)
    return [
        *_action_bars(summary.get("action") or {}),
        *_video_bars(summary.get("video") or {}),
        Bar(
            name="Task Progress above a random policy",
            value=advantage(loop),
            least=30.0,
            show=lambda v: f"{figure(v)} points",
            note=f"mean over {len(loop)} closed-loop tasks" if loop else DASH,
        ),
        Bar(
            name="Tasks run in closed loop",
            value=float(len(loop)) if loop else None,
            least=float(MIN_TASKS),
            show=figure,
        ),
        Bar(
            name="Episodes solved in closed loop",
            value=solved_share(loop),
            least=0.0,
            strict=True,
            show=percent,
            note="mean over the tasks",
        ),
        Bar(
            name="Packed tokens that are real",
            value=measured(summary.get("packing_efficiency")),
            least=0.90,
            show=percent,
        ),
        Bar(
            name="Time of the whole run, without installation",
            value=total or None,
            most=1200.0,
            show=duration,
            note="sum over the phases, two processor cores",
        ),
    ]
