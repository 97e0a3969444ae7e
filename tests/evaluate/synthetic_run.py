"""A made-up run folder with every part of a real one, for the report's tests.

python tests/evaluate/synthetic_run.py /tmp/run     draws one to look at
"""

import json
import sys
from pathlib import Path

import numpy as np

TASKS = (
    "drawer-open",
    "drawer-close",
    "button-press",
    "window-open",
    "window-close",
    "faucet-open",
    "door-close",
    "plate-slide",
    "reach",
    "coffee-button",
)
CAPTIONS = (
    "reach for the handle",
    "align with the handle",
    "pull the drawer towards the robot",
    "let go",
)
HOSTILE = "push <b>\"the\" & 'other'</b> </style><script>alert(1)</script>"
"""A caption that must come out as text, whatever part of the page shows it."""


def _scene(
    t: np.ndarray, size: int, view: int, blur: float, rng: np.random.Generator
) -> np.ndarray:
    """Frames [T, size, size, 3]: a block sliding over a table as t goes 0 to 1."""
    y, x = np.mgrid[0:size, 0:size] / size
    frames = np.empty((len(t), size, size, 3), np.float32)
    for i, when in enumerate(t):
        centre = (0.25 + 0.5 * when, 0.55 - 0.1 * view + 0.1 * np.sin(3 * when))
        near = np.exp(-((((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (0.008 + blur)) ** 2))
        table = np.where(y > 0.35, 0.62 - 0.15 * y, 0.80)[..., None] * (1.0, 0.97, 0.90)
        frames[i] = table * (1 - near[..., None]) + near[..., None] * (0.75, 0.25, 0.20)
    noise = rng.normal(0, 0.01 + blur, frames.shape)
    return (255 * np.clip(frames + noise, 0, 1)).astype(np.uint8)


def _write(path: Path, value: object) -> None:
    """JSON with its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _summary() -> dict:
    """The keys other programs read, with plausible numbers."""
    loop = {
        task: {
            "episodes": 3,
            "success": 1 + i % 3,
            "task_progress": 88.0 - 6 * i,
            "random_task_progress": 6.0 + 3 * (i % 4),
        }
        for i, task in enumerate(TASKS)
    }
    return {
        "episodes": 480,
        "events": 2311,
        "event_length": {"p5": 4, "p50": 11, "p95": 31, "max": 48},
        "packing_efficiency": 0.942,
        "video": {
            "loss_first": 1.82,
            "loss_last": 0.231,
            "mse_vs_copy_last": 0.47,
            "pixel_mse_vs_copy_last": 0.62,
            "pixel_raw_mse_vs_copy_last": 0.7,
        },
        "action": {
            "mae": 0.0912,
            "mae_mean_trajectory": 0.301,
            "mae_mean_caption": 0.142,
            "mae_hold": 0.44,
            "mae_wrong_observation": 0.161,
        },
        "closed_loop": loop,
        "seconds": {
            "data": 212.0,
            "codec": 9.3,
            "video": 402.5,
            "action": 238.1,
            "evaluate": 151.0,
        },
        "params": {"codec": 61440, "text": 210000, "video": 2412544, "action": 1203211},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
    }


def _examples(folder: Path, n: int, size: int, rng: np.random.Generator) -> None:
    """eval/examples.npz and .json."""
    views, frames, steps = 3, 17, 32
    valid = np.array([5 + 4 * (i % 4) for i in range(n)])
    count = np.array([8 + 8 * (i % 4) for i in range(n)])
    t = np.linspace(0, 1, frames)
    real = np.stack([[_scene(t, size, v, 0.0, rng) for v in range(views)] for _ in range(n)])
    imagined = np.stack([[_scene(t, size, v, 0.03, rng) for v in range(views)] for _ in range(n)])
    imagined[:, :, 0] = real[:, :, 0]
    k = np.linspace(0, 1, steps)
    path = np.stack([8 * k, -3 * np.sin(2 * k), 2 * k**2, np.where(k > 0.6, 1.0, -1.0)], axis=-1)
    expert = np.stack([path * (1 + 0.2 * i) for i in range(n)]).astype(np.float32)
    expert[..., 3] = path[:, 3]
    arrays = {
        "real": real,
        "imagined": imagined,
        "frames": valid,
        "steps": count,
        "expert": expert,
        "predicted": expert + rng.normal(0, 0.2, expert.shape).astype(np.float32),
        "mean_caption": (expert * 0.8 + 0.3).astype(np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "examples.npz", **arrays)
    about = [
        {
            "task": TASKS[i % len(TASKS)],
            "seed": 200 + i,
            "label": "pull",
            "caption": HOSTILE if i == 1 else f"{CAPTIONS[i % 4]} ({i})",
        }
        for i in range(n)
    ]
    _write(folder / "examples.json", about)


def _closed_loop(folder: Path, size: int, rng: np.random.Generator) -> None:
    """eval/closed_loop.json and one filmstrip per task, one task without."""
    record = {}
    for task in TASKS:
        events = [
            {
                "caption": c,
                "label": "pull",
                "start": 12 * j,
                "end": 12 * j + 12,
                "progress": 25.0 * j,
            }
            for j, c in enumerate((*CAPTIONS[:3], HOSTILE))
        ]
        episodes = [
            {
                "seed": 200 + s,
                "success": s == 1,
                "progress": 80.0 - 9 * s,
                "random_progress": 7.5,
                "events": events,
            }
            for s in range(3)
        ]
        record[task] = {"episodes": episodes}
    _write(folder / "closed_loop.json", record)
    for task in TASKS[:-1]:
        n = 24
        np.savez_compressed(
            folder / f"closed_loop_{task}.npz",
            frames=_scene(np.linspace(0, 1, n), size, 0, 0.0, rng),
            event=np.repeat(np.arange(4), 6),
            step=np.arange(n) * 2,
        )


def _timelines(folder: Path) -> None:
    """eval/timelines.json: nested spans, the finest ones crowded."""
    cuts = [0, 11, 16, 31, 48]
    fine = [0, 5, 11, 14, 16, 23, 31, 40, 48]
    timelines = []
    for i, task in enumerate(TASKS[:3]):
        tracks = {
            "task": [[0, 48, "open the drawer"]],
            "subtask": [[0, 16, "approach the drawer"], [16, 48, HOSTILE if i == 0 else "open it"]],
            "action": [[a, b, CAPTIONS[j]] for j, (a, b) in enumerate(zip(cuts, cuts[1:]))],
            "segment": [
                [a, b, f"move {'left' if j % 2 else 'down'}"]
                for j, (a, b) in enumerate(zip(fine, fine[1:]))
            ],
        }
        k = np.arange(48)
        timelines.append(
            {
                "task": task,
                "seed": 200 + i,
                "steps": 48,
                "tracks": tracks,
                "speed": np.abs(np.sin(k / 6)).round(3).tolist(),
                "gripper": np.where(k > 16, 1.0, -1.0).tolist(),
            }
        )
    _write(folder / "timelines.json", timelines)


def _training(run: Path, rng: np.random.Generator) -> None:
    """metrics.jsonl of both stages."""
    for stage, floor in (("video", 0.2), ("action", 0.05)):
        lines = []
        for step in range(0, 2000, 10):
            loss = (floor + 1.6 * np.exp(-step / 250)) * float(np.exp(rng.normal(0, 0.15)))
            lines.append(
                json.dumps({"step": step, "loss": loss, "loss_hex": loss.hex(), "lr": 1e-3})
            )
        (run / stage).mkdir(parents=True, exist_ok=True)
        (run / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def make_run(run: Path, examples: int = 6, size: int = 32) -> Path:
    """Writes the whole folder and returns it."""
    rng = np.random.default_rng(0)
    evaluation = run / "eval"
    _write(run / "summary.json", _summary())
    _write(run / "dataset" / "manifest.json", {"views": ["ego", "side", "wrist"]})
    _training(run, rng)
    _examples(evaluation, examples, size, rng)
    _closed_loop(evaluation, size, rng)
    _timelines(evaluation)
    tables = {
        "error by label": {
            "reach": {"mae": 0.07, "events": 81},
            "pull": {"mae": 0.11, "events": 44},
        }
    }
    _write(
        evaluation / "offline.json",
        {"video": {"psnr": 27.1}, "action": {"mae_x": 0.08}, "tables": tables},
    )
    rows = [
        np.repeat([1, 2, 3, 4, 0], rng.multinomial(22, [0.3, 0.28, 0.22, 0.17, 0.03]))
        for _ in range(10)
    ]
    rows = [sorted(row.tolist(), key=lambda s: s or 99) for row in rows]
    _write(
        evaluation / "packing.json",
        {"video_tokens_real": 0.942, "action_tokens_real": 0.917, "example": rows},
    )
    return run


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1]), examples=8, size=64))
