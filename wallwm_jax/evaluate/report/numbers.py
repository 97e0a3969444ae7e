"""All numbers: every bar with its threshold, then the rest as plain tables."""

from typing import Any

from wallwm_jax.evaluate.report.bars import Bar, judge
from wallwm_jax.evaluate.report.markup import Markup, join, section, table, tag
from wallwm_jax.evaluate.report.run_folder import RunFolder
from wallwm_jax.evaluate.report.wording import DASH, duration, figure, measured

_VERDICTS = {True: ("met", "met"), False: ("not met", "missed"), None: ("not measured", "open")}


def _bar_row(bar: Bar) -> list[object]:
    """Requirement, measured, verdict, in that reading order."""
    words, kind = _VERDICTS[bar.met]
    return [
        tag("span", bar.name, tag("small", bar.note)),
        bar.required,
        DASH if bar.value is None else bar.show(bar.value),
        tag("span", words, class_=f"verdict {kind}"),
    ]


def _leaf(value: Any) -> str:
    """Any value of a JSON table as short text."""
    if measured(value) is not None:
        return figure(value)
    if isinstance(value, (dict, list)):
        return f"{len(value)} entries"
    return DASH if value is None or isinstance(value, float) else str(value)


def _grid(name: str, rows: dict[str, Any]) -> Markup:
    """A dict of numbers as two columns, a dict of dicts as a full table."""
    if rows and all(isinstance(row, dict) for row in rows.values()):
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        body = [[key, *(_leaf(row.get(c)) for c in columns)] for key, row in rows.items()]
        return tag("div", tag("h3", name), table(["", *columns], body))
    body = [[key, _leaf(value)] for key, value in rows.items()]
    return tag("div", tag("h3", name), table(["", "value"], body))


def _closed_loop(tasks: dict[str, dict]) -> Markup:
    """Per task: episodes, how many were solved, Task Progress against random actions."""
    rows = [
        [
            task,
            figure(r.get("episodes")),
            figure(r.get("success")),
            figure(r.get("task_progress")),
            figure(r.get("random_task_progress")),
        ]
        for task, r in tasks.items()
    ]
    head = ["", "episodes", "solved", "Task Progress", "random actions"]
    return tag("div", tag("h3", "Closed loop"), table(head, rows), class_="wide")


def _grids(run: RunFolder) -> list[Markup]:
    """Everything of `summary.json`, then the offline evaluation's own tables."""
    summary = run.summary
    counts = {k: summary.get(k) for k in ("episodes", "events", "packing_efficiency")}
    grids = [_grid("Data", counts)]
    for key, name in (
        ("event_length", "Event length, control steps"),
        ("video", "Video"),
        ("action", "Action"),
    ):
        if summary.get(key):
            grids.append(_grid(name, summary[key]))
    if summary.get("closed_loop"):
        grids.append(_closed_loop(summary["closed_loop"]))
    if summary.get("seconds"):
        times = {phase: duration(s) for phase, s in summary["seconds"].items()}
        grids.append(_grid("Time per phase", times))
    for key, name in (("params", "Parameters"), ("versions", "Versions")):
        if summary.get(key):
            rows = {k: f"{v:,}" if isinstance(v, int) else v for k, v in summary[key].items()}
            grids.append(_grid(name, rows))
    return grids + _offline_grids(run.offline or {})


def _offline_grids(offline: dict[str, Any]) -> list[Markup]:
    """The offline evaluation, whatever tables it wrote."""
    grids = []
    for kind in ("video", "action"):
        if isinstance(offline.get(kind), dict) and offline[kind]:
            grids.append(_grid(f"Offline evaluation, {kind}", offline[kind]))
    tables = offline.get("tables")
    for name, rows in (tables if isinstance(tables, dict) else {}).items():
        if isinstance(rows, dict):
            grids.append(_grid(name, rows))
    return grids


def numbers_section(run: RunFolder) -> Markup:
    """The bars of the project, and under them every number of the run."""
    lead = (
        "What this project asks of a run, and what this run measured on episodes held out by seed. "
        "A bar whose numbers are missing counts as not measured, never as met."
    )
    bars = table(
        ["requirement", "required", "measured", "verdict"],
        [_bar_row(b) for b in judge(run.summary)],
    )
    rest = tag(
        "details",
        tag("summary", "Every number of this run"),
        tag("div", join(_grids(run)), class_="grids"),
        open=True,
    )
    return section("numbers", "All numbers", lead, bars, rest)
