"""The stages as data: what trains, which loss, which earlier stage it stands on.

A stage is one line of this table (method section 5). Whatever a stage does not
train is frozen and not even differentiated.
"""

import dataclasses
from collections.abc import Callable

from wallwm_jax.train.objectives import action_loss, joint_loss, video_loss

Objective = Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
      trains: parts of the parameters that move.
      objective: loss of (denoiser, config, params, batch, key).
      starts_from: stage whose averaged parameters it starts from; None is scratch.
      segmentation: what the training sequences are: "behaviour" events, or the
        "fixed" chunks with the task instruction only.
    """

    trains: tuple[str, ...]
    objective: Objective
    starts_from: str | None = None
    segmentation: str = "behaviour"


STAGES: dict[str, Stage] = {
    "video": Stage(trains=("video",), objective=video_loss),
    "action": Stage(trains=("action",), objective=action_loss, starts_from="video"),
    "scratch": Stage(trains=("video", "action"), objective=joint_loss, segmentation="fixed"),
}


def stage_named(name: str) -> Stage:
    """Looks a stage up.

    Raises:
      ValueError: unknown name; the message lists the known ones.
    """
    if name not in STAGES:
        raise ValueError(
            f"stage {name!r} is unknown; use --config.stage= one of {', '.join(STAGES)}"
        )
    return STAGES[name]
