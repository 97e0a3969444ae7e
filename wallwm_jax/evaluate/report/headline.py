"""The top of the page: what this run is, its main numbers, and how to read them."""

from wallwm_jax.evaluate.report.bars import advantage, judge, solved_share
from wallwm_jax.evaluate.report.markup import Markup, tag
from wallwm_jax.evaluate.report.run_folder import RunFolder
from wallwm_jax.evaluate.report.wording import (
    DASH,
    below,
    closer,
    figure,
    measured,
    percent,
    plural,
)


def _mean(closed_loop: dict[str, dict], key: str) -> float | None:
    """Mean of one closed-loop number over the tasks that measured it."""
    values = [v for v in (measured(t.get(key)) for t in closed_loop.values()) if v is not None]
    return sum(values) / len(values) if values else None


def sentences(summary: dict) -> list[str]:
    """The run in plain language; a sentence whose numbers are missing is left out."""
    said = []
    episodes, events = measured(summary.get("episodes")), measured(summary.get("events"))
    length = summary.get("event_length") or {}
    if episodes and events:
        said.append(
            f"{plural(round(episodes), 'robot episode')} were cut into "
            f"{plural(round(events), 'event')} where the behaviour changes; half of "
            f"the events last at most {figure(length.get('p50'))} control steps."
        )
    ratio = measured((summary.get("video") or {}).get("mse_vs_copy_last"))
    if ratio is not None:
        said.append(
            "Before it acts, the model imagines the next event in every camera view. On episodes "
            f"it never saw, that video is {closer(ratio, 1.0)} to what happened than repeating "
            "the last observed frame."
        )
    action = summary.get("action") or {}
    gain = below(action.get("mae"), action.get("mae_mean_caption"))
    if gain is not None:
        said.append(
            "Actions made from the imagined video are "
            f"{closer(action.get('mae'), action.get('mae_mean_caption'))} to the expert's than the "
            "average trajectory of events with the same caption."
        )
    loop = summary.get("closed_loop") or {}
    mine, random = _mean(loop, "task_progress"), _mean(loop, "random_task_progress")
    if mine is not None:
        against = "" if random is None else f", where random actions reach {figure(random)}"
        said.append(
            f"Acting on its own, one event after another, it reaches {figure(mine)} of 100 points "
            f"of Task Progress over {plural(len(loop), 'task')}{against}."
        )
    return said


def _tile(value: str, label: str, detail: str) -> Markup:
    """One main number."""
    return tag(
        "div",
        tag("dt", label),
        tag("dd", value, class_="value"),
        tag("dd", detail, class_="detail"),
        class_="tile",
    )


def _tiles(summary: dict) -> Markup:
    """The main numbers, each with what it has to be compared with."""
    action, video = summary.get("action") or {}, summary.get("video") or {}
    loop = summary.get("closed_loop") or {}
    bars = judge(summary)
    judged = [bar for bar in bars if bar.met is not None]
    gain = advantage(loop)
    return tag(
        "dl",
        _tile(
            figure(_mean(loop, "task_progress")),
            "Task Progress",
            DASH if gain is None else f"closed loop, random actions {gain:.1f} points lower",
        ),
        _tile(
            percent(solved_share(loop)),
            "Episodes solved",
            f"closed loop, {plural(len(loop), 'task')}" if loop else DASH,
        ),
        _tile(
            figure(action.get("mae")),
            "Action error (MAE)",
            f"mean of the same caption {figure(action.get('mae_mean_caption'))}",
        ),
        _tile(
            figure(video.get("mse_vs_copy_last")),
            "Imagined video error",
            "repeating the last frame: 1",
        ),
        _tile(
            percent(summary.get("packing_efficiency")), "Real tokens", "of every packed sequence"
        ),
        _tile(
            f"{sum(bool(bar.met) for bar in judged)} of {len(judged)}",
            "Bars met",
            f"{len(bars) - len(judged)} not measured"
            if len(judged) < len(bars)
            else "all measured",
        ),
        class_="tiles",
    )


def headline(run: RunFolder) -> Markup:
    """Title, main numbers and the sentences that say what is shown."""
    return tag(
        "header",
        tag("p", "WALL-WM in JAX", class_="kicker"),
        tag("h1", f"Run “{run.name}”"),
        tag(
            "p", " ".join(sentences(run.summary)) or "This run measured nothing yet.", class_="lead"
        ),
        _tiles(run.summary),
    )
