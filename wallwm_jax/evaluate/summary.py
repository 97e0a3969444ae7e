"""summary.json: the numbers of a run, for people and for other programs."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "mujoco", "metaworld")


def summarise_run(
    run: Path,
    offline: dict[str, Any],
    closed_loop: dict[str, Any],
    packing: dict[str, Any],
    seconds: dict[str, float],
    params: dict[str, int],
) -> dict[str, Any]:
    """Gathers the summary of a run folder.

    Args:
      run: folder with dataset/ and video/metrics.jsonl.
      offline, closed_loop, packing: what the evaluation found.
      seconds: wall time per phase.
      params: parameters per part.
    """
    manifest = json.loads((run / "dataset" / "manifest.json").read_text())
    action, video = offline["action"], offline["video"]
    losses = [
        json.loads(line)["loss"]
        for line in (run / "video" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [loss for loss in losses if np.isfinite(loss)]  # the others' updates were skipped
    # Single losses are noisy draws of t: the first and last twentieth are averaged.
    part = max(1, len(losses) // 20)
    return {
        "episodes": sum(split["episodes"] for split in manifest["splits"].values()),
        "events": sum(split["events"] for split in manifest["splits"].values()),
        "event_length": manifest["event_length"],
        "packing_efficiency": packing["efficiency"],
        "video": {
            "loss_first": float(np.mean(losses[:part])),
            "loss_last": float(np.mean(losses[-part:])),
            "mse_vs_copy_last": video["latent_mse_vs_copy_last"],
            "pixel_mse_vs_copy_last": video["pixel_mse_vs_copy_last"],
            "pixel_raw_mse_vs_copy_last": video["pixel_raw_mse_vs_copy_last"],
        },
        "action": {
            key: action[key]
            for key in (
                "mae",
                "mae_mean_trajectory",
                "mae_mean_caption",
                "mae_hold",
                "mae_wrong_observation",
                "mae_wrong_images",
                "mae_truth_video",
                "position_cm",
            )
        },
        "closed_loop": closed_loop,
        "seconds": seconds,
        "params": params,
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
