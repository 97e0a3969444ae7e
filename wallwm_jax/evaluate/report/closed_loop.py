"""Closed loop: Task Progress per task, and one episode of each as a filmstrip."""

import itertools

import numpy as np
from jaxtyping import Integer

from wallwm_jax.evaluate.report.arrays import Strip
from wallwm_jax.evaluate.report.bars import solved_share
from wallwm_jax.evaluate.report.images import Detail, picture, spread
from wallwm_jax.evaluate.report.markup import Markup, not_run, section, table, tag
from wallwm_jax.evaluate.report.run_folder import RunFolder, filmed_episode
from wallwm_jax.evaluate.report.timelines import TINTS
from wallwm_jax.evaluate.report.wording import figure, measured, percent, plural


def key_frames(event: Integer[np.ndarray, "n"], columns: int) -> Integer[np.ndarray, "k"]:
    """Frames to show: the first of every event, then even ones, the last always.

    `columns` is exceeded only when there are more events than columns: no
    executed event may be missing from the strip.
    """
    if not len(event):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(event, prepend=event[0] - 1) != 0)
    chosen = set(starts.tolist()) | {len(event) - 1}
    for i in spread(len(event), columns).tolist():
        if len(chosen) >= columns:
            break
        chosen.add(i)
    return np.array(sorted(chosen), dtype=np.int64)


def _progress_rows(summary: dict) -> Markup:
    """One bar per task: the model's Task Progress, a tick where random actions end."""
    rows = []
    for task, record in summary.items():
        mine, random = (measured(record.get(k)) for k in ("task_progress", "random_task_progress"))
        said = f"{task}: Task Progress {figure(mine)} of 100, random actions {figure(random)}"
        bar = tag(
            "div",
            tag("span", class_="fill", style=f"width:{min(max(mine or 0, 0), 100):.1f}%"),
            None
            if random is None
            else tag("span", class_="tick-mark", style=f"left:{min(max(random, 0), 100):.1f}%"),
            class_="bar",
            role="img",
            aria_label=said,
        )
        words = f"{figure(mine)} / {figure(random)}"
        rows.append(
            tag(
                "div",
                tag("span", task, class_="name"),
                bar,
                tag("span", words, class_="number"),
                class_="progress-row",
            )
        )
    note = tag(
        "figcaption",
        "Task Progress from 0 to 100: bar and first number, the model; tick and second "
        "number, random actions. Mean over the held-out episodes of each task.",
    )
    return tag("figure", *rows, note)


def _film(task: str, strip: Strip, events: list[dict], detail: Detail) -> Markup:
    """Frames of one episode in groups, one group per event, its caption underneath."""
    chosen = key_frames(strip.event, detail.columns).tolist()
    groups = []
    for place, (index, frames) in enumerate(
        itertools.groupby(chosen, lambda i: int(strip.event[i]))
    ):
        words = events[index]["caption"] if index >= 0 else "no event"
        pictures = []
        for i in frames:
            step = int(strip.step[i])
            alt = f"{task}, ego view at control step {step}, executing “{words}”"
            shown = picture(strip.frames[i], alt, detail.quality, "frame")
            pictures.append(tag("div", shown, tag("span", f"step {step}", class_="step")))
        groups.append(
            tag(
                "figure",
                tag("div", *pictures, class_="frames"),
                tag("figcaption", words, class_=f"c{place % TINTS}"),
                class_="group",
                style=f"--frames:{len(pictures)}",
            )
        )
    return tag("div", tag("div", *groups, class_="film-strip"), class_="scroll")


def _outcomes(episodes: list[dict]) -> Markup:
    """Every episode's result, folded away."""
    rows = [
        [
            f"seed {episode['seed']}",
            "yes" if episode["success"] else "no",
            figure(episode["progress"]),
            figure(episode.get("random_progress")),
            len(episode["events"]),
        ]
        for episode in episodes
    ]
    head = ["episode", "solved", "Task Progress", "random actions", "events executed"]
    return tag(
        "details", tag("summary", plural(len(episodes), "episode")), table(head, rows, numeric=1)
    )


def _task(run: RunFolder, task: str, detail: Detail) -> Markup:
    """One task: its filmstrip and its episodes."""
    episodes = run.closed_loop[task]["episodes"]
    solved = sum(bool(episode["success"]) for episode in episodes)
    facts = f"{solved} of {plural(len(episodes), 'episode')} solved"
    if task in run.strips and episodes:
        shown = filmed_episode(episodes)
        film = _film(task, run.strips[task], shown["events"], detail)
        which = "the first solved" if shown["success"] else "the first"
        facts += (
            f" · shown: seed {shown['seed']}, {which}, Task Progress {figure(shown['progress'])}"
        )
    else:
        film = not_run("No pictures were kept for this task.", f"eval/closed_loop_{task}.npz")
    return tag(
        "article",
        tag("h3", task),
        tag("p", facts, class_="facts"),
        film,
        _outcomes(episodes),
        class_="card",
    )


def closed_loop_section(run: RunFolder, detail: Detail) -> Markup:
    """The model's own actions in the simulator, one event after another."""
    title = "What it does"
    summary = run.summary.get("closed_loop") or {}
    if not run.closed_loop and not summary:
        return section(
            "closed-loop", title, not_run("The model did not act.", "eval/closed_loop.json")
        )
    lead = (
        "Here nothing is given but the simulator. A planner names the next event; the model "
        "imagines it, makes its actions, and they move the arm until the event ends and a new "
        f"observation is taken. Solved, mean over tasks: {percent(solved_share(summary))}. "
        "Under the frames stands the event being executed at that moment."
    )
    tasks = [_task(run, task, detail) for task in run.closed_loop or {}]
    if not tasks:
        tasks = [not_run("Episodes were not recorded one by one.", "eval/closed_loop.json")]
    return section("closed-loop", title, lead, _progress_rows(summary) if summary else None, *tasks)
