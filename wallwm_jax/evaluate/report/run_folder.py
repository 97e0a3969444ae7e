"""Reads a run folder: the JSON parts, checked, and the array parts by name.

Only `summary.json` has to be there. Every other part is optional (a smoke run
leaves some out) and is None when its file is missing; a file that is there but
wrong stops the report with one line, because a page drawn from half-read
numbers would be believed.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from wallwm_jax.evaluate.report.arrays import Examples, Strip, read_examples, read_strip

TIMELINE_TRACKS = ("task", "subtask", "action", "segment")
"""Caption tracks drawn, coarse to fine; the optional human track is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Everything the page is drawn from.

    Attributes:
      name: the folder's own name, e.g. "demo".
      summary: `summary.json`.
      manifest: `dataset/manifest.json`.
      metrics: stage ("video", "action") -> list of logged records by step.
      offline: `eval/offline.json`.
      examples: `eval/examples.npz` with its captions.
      closed_loop: task -> {"episodes": [...]}.
      strips: task -> frames of one closed-loop episode.
      timelines, packing: `eval/timelines.json`, `eval/packing.json`.
    """

    name: str
    summary: dict[str, Any]
    manifest: dict[str, Any] | None
    metrics: dict[str, list[dict]]
    offline: dict[str, Any] | None
    examples: Examples | None
    closed_loop: dict[str, dict] | None
    strips: dict[str, Strip]
    timelines: list[dict] | None
    packing: dict[str, Any] | None


def _malformed(path: Path, problem: str) -> ValueError:
    """The one error line every malformed part ends in."""
    return ValueError(f"report: {path}: {problem}; run again the phase that writes this file")


def _read_json(path: Path, kind: type) -> Any:
    """Parsed JSON of type `kind`, or None when the file does not exist."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _malformed(path, f"not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise _malformed(path, f"expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def read_metrics(path: Path) -> list[dict]:
    """Records of a `metrics.jsonl`, by step; a step logged twice keeps the later one.

    A resumed run logs again the steps since its last checkpoint, so repeats are
    expected and carry the same loss.

    Raises:
      ValueError: a line is not an object with an integer "step" and a "loss".
    """
    if not path.is_file():
        return []
    records = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[int(record["step"])] = record | {"loss": float(record["loss"])}
        except (ValueError, KeyError, TypeError) as error:
            raise _malformed(path, f"line {number} has no step and loss ({error!r})") from error
    return [records[step] for step in sorted(records)]


def _need(path: Path, where: str, record: Any, kinds: dict[str, type | tuple]) -> None:
    """Raises ValueError naming the first key that is missing or of the wrong type."""
    if not isinstance(record, dict):
        raise _malformed(path, f"{where} is {type(record).__name__}, not an object")
    for key, kind in kinds.items():
        if key not in record:
            raise _malformed(path, f"{where} has no {key!r}")
        if not isinstance(record[key], kind):
            raise _malformed(path, f"{where} {key!r} is {type(record[key]).__name__}")


def _read_timelines(path: Path) -> list[dict] | None:
    """Timelines with every span inside its episode."""
    timelines = _read_json(path, list)
    for i, line in enumerate(timelines or []):
        where = f"timeline {i}"
        _need(path, where, line, {"task": str, "steps": int, "tracks": dict})
        for track, spans in line["tracks"].items():
            for span in spans:
                if not (isinstance(span, list) and len(span) == 3):
                    raise _malformed(
                        path, f"{where} {track} has a span that is not [start, end, text]"
                    )
                if not 0 <= span[0] < span[1] <= line["steps"]:
                    raise _malformed(
                        path, f"{where} {track} span {span[:2]} leaves its {line['steps']} steps"
                    )
    return timelines


def _read_closed_loop(path: Path) -> dict[str, dict] | None:
    """Closed-loop records, each episode with its seed, outcome and events."""
    tasks = _read_json(path, dict)
    numbers = (int, float)
    for task, record in (tasks or {}).items():
        _need(path, task, record, {"episodes": list})
        for i, episode in enumerate(record["episodes"]):
            kinds = {"seed": int, "success": (bool, *numbers), "progress": numbers, "events": list}
            _need(path, f"{task} episode {i}", episode, kinds)
            for j, event in enumerate(episode["events"]):
                _need(path, f"{task} episode {i} event {j}", event, {"caption": str})
    return tasks


def filmed_episode(episodes: list[dict]) -> dict | None:
    """The episode whose frames were kept: the first one solved, or else the first."""
    return next((e for e in episodes if e["success"]), episodes[0] if episodes else None)


def _read_strips(folder: Path, closed_loop: dict[str, dict] | None) -> dict[str, Strip]:
    """The closed-loop pictures of every task that has them."""
    strips = {}
    for task, record in (closed_loop or {}).items():
        path = folder / f"closed_loop_{task}.npz"
        if path.is_file():
            filmed = filmed_episode(record["episodes"])
            strips[task] = read_strip(path, event_count=len(filmed["events"]) if filmed else 0)
    return strips


def read_run(folder: Path) -> RunFolder:
    """Reads and checks one run folder.

    Raises:
      FileNotFoundError: no such folder, or it has no `summary.json`.
      ValueError: a part is there but malformed; the line names file and place.
    """
    summary = _read_json(folder / "summary.json", dict)
    if summary is None:
        raise FileNotFoundError(
            f"report: {folder / 'summary.json'} does not exist; give a finished run folder "
            f"such as runs/demo, or make one with `make demo`"
        )
    for key in ("video", "action", "closed_loop", "event_length", "seconds", "params", "versions"):
        if not isinstance(summary.get(key) or {}, dict):
            raise _malformed(folder / "summary.json", f"{key!r} is not an object")
    for task, record in (summary.get("closed_loop") or {}).items():
        _need(folder / "summary.json", f"closed_loop {task}", record, {})
    evaluation = folder / "eval"
    captions = _read_json(evaluation / "examples.json", list)
    closed_loop = _read_closed_loop(evaluation / "closed_loop.json")
    packing = _read_json(evaluation / "packing.json", dict)
    if packing is not None:
        _need(evaluation / "packing.json", "the record", packing, {"example": list})
    return RunFolder(
        name=folder.resolve().name,
        summary=summary,
        manifest=_read_json(folder / "dataset" / "manifest.json", dict),
        metrics={s: read_metrics(folder / s / "metrics.jsonl") for s in ("video", "action")},
        offline=_read_json(evaluation / "offline.json", dict),
        examples=read_examples(evaluation / "examples.npz", captions),
        closed_loop=closed_loop,
        strips=_read_strips(evaluation, closed_loop),
        timelines=_read_timelines(evaluation / "timelines.json"),
        packing=packing,
    )
