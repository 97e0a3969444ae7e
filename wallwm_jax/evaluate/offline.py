"""Held-out events without a simulator: imagined video and predicted actions.

Everything here is read by the report and the summary; the model always reads
its OWN imagined video (except where a name says "truth").
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wallwm_jax.evaluate import actions as metrics
from wallwm_jax.evaluate.actions import ActionTruth
from wallwm_jax.events.store import EventStore
from wallwm_jax.input.batch import Batch
from wallwm_jax.input.latents import LatentStore
from wallwm_jax.input.loader import single_event_batches
from wallwm_jax.models.codec import copy_last_latents
from wallwm_jax.rollout.inference import act_on_truth, dream_clean, imagine
from wallwm_jax.rollout.policy import EventPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One split: events (pictures, captions) and their latents, in one order."""

    events: EventStore
    latents: LatentStore

    def truth(self) -> ActionTruth:
        """The expert's trajectories."""
        records = [self.latents[i] for i in range(len(self.latents))]
        index = self.events.index
        return ActionTruth(
            actions=[r.actions for r in records],
            masks=[r.action_mask for r in records],
            labels=[self.events.labels[int(i)] for i in index.label],
            captions=[self.events.captions[int(i)] for i in index.caption],
            last_gripper=[float(r.state[-1]) for r in records],
        )


def batches(policy: EventPolicy, split: Split) -> Iterator[Batch]:
    """The split as batches of single events."""
    for batch in single_event_batches(
        split.latents, statistics=policy.statistics, tokeniser=policy.tokeniser, dims=policy.dims
    ):
        yield jax.tree.map(jnp.asarray, batch)


def predict(
    policy: EventPolicy,
    split: Split,
    key: jax.Array,
    *,
    method: Callable = imagine,
    partner: np.ndarray | None = None,
    swap_state: bool = False,
    progress: Callable[[int], Any] = lambda n: None,
) -> list[np.ndarray]:
    """Predicted trajectories of every event, raw units.

    Args:
      method: `imagine`, or `act_on_truth` for the diagnostic.
      partner: event whose observation is shown instead of the event's own
        pictures (and, with `swap_state`, proprioception).
    """
    found: list[np.ndarray] = []
    for number, batch in enumerate(batches(policy, split)):
        ids = np.asarray(batch.event_id[:, 0])
        real = ids[ids >= 0]
        if partner is not None:
            batch = with_observations(policy, split, batch, partner[real], swap_state=swap_state)
        out = method(
            policy.denoiser, policy.config, policy.params, batch, jax.random.fold_in(key, number)
        )
        for row in range(len(real)):
            steps = int(batch.event_length[row, 0])
            mask = np.asarray(batch.action_mask[row, 0])
            found.append(policy.unnormalise(np.asarray(out.actions[row, :steps]), mask))
        progress(len(real))
    return found


def with_observations(
    policy: EventPolicy, split: Split, batch: Batch, partners: np.ndarray, *, swap_state: bool
) -> Batch:
    """The batch with the observations of other events put in place of its own."""
    others = single_event_batches(
        split.latents,
        statistics=policy.statistics,
        tokeniser=policy.tokeniser,
        dims=policy.dims,
        events=[int(i) for i in partners],
    )
    other = jax.tree.map(jnp.asarray, next(others))
    observed = (batch.frame_index == 0)[:, None, :, None, None, None]
    batch = batch.replace(latents=jnp.where(observed, other.latents, batch.latents))
    return batch.replace(state=other.state) if swap_state else batch


def partners_of(store: EventStore) -> np.ndarray:
    """For each event, another episode's event of the same task and, if there is
    one, the same caption; deterministic: the next such event in the store."""
    index = store.index
    found = np.arange(len(index.task))
    for i in range(len(found)):
        same_task = (index.task == index.task[i]) & (index.episode != index.episode[i])
        choices = np.flatnonzero(same_task & (index.caption == index.caption[i]))
        choices = choices if len(choices) else np.flatnonzero(same_task)
        if len(choices):
            found[i] = choices[np.searchsorted(choices, i) % len(choices)]
    return found


def action_report(
    policy: EventPolicy,
    train: Split,
    test: Split,
    key: jax.Array,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    """Errors of the model and of the baselines; (numbers, trajectories by name)."""
    known, truth = train.truth(), test.truth()
    partner = partners_of(test.events)
    guesses = {
        "model": predict(policy, test, key, progress=progress),
        "truth_video": predict(policy, test, key, method=act_on_truth, progress=progress),
        "wrong_images": predict(policy, test, key, partner=partner, progress=progress),
        "wrong_observation": predict(
            policy, test, key, partner=partner, swap_state=True, progress=progress
        ),
        "mean_trajectory": metrics.from_means(
            metrics.mean_trajectories(known, known.labels), truth.labels, truth
        ),
        "mean_caption": metrics.from_means(
            metrics.mean_trajectories(known, known.captions), truth.captions, truth
        ),
        "hold": metrics.holds(truth),
    }
    std = policy.statistics.action.std
    numbers: dict[str, float] = {}
    for name, guess in guesses.items():
        tail = "" if name == "model" else f"_{name}"
        numbers[f"mae{tail}"] = metrics.mean_absolute_error(guess, truth, std)
        numbers[f"position_cm{tail}"] = metrics.position_error_cm(guess, truth)
        numbers[f"gripper{tail}"] = metrics.gripper_error(guess, truth)
    return numbers, guesses | {"expert": truth.actions}


def video_report(
    policy: EventPolicy,
    split: Split,
    steps: int,
    key: jax.Array,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Imagined against real video, beside copying the last observed frame.

    Returns:
      (numbers, imagined clips): mean squared errors over future frames, in
      latent units and in pixels scaled to [-1, 1]; clips uint8 [V, T, H, W, 3].
      `pixel_*` compare what the codec can show (prediction and copy both
      decoded); `pixel_*_raw` add the detail that the codec lost in the observed
      frame back to the prediction and compare with the untouched observed frame.
    """
    sums = dict.fromkeys(
        ("latent", "latent_copy", "pixel", "pixel_copy", "pixel_raw", "pixel_copy_raw"), 0.0
    )
    counts = {"latent": 0, "pixel": 0}
    clips: list[np.ndarray] = []
    codec = policy.params["codec"]
    for number, batch in enumerate(batches(policy, split)):
        dreamt = np.asarray(
            dream_clean(
                policy.denoiser,
                policy.config,
                steps,
                policy.params,
                batch,
                jax.random.fold_in(key, number),
            )
        )
        for row, event in enumerate(np.asarray(batch.event_id[:, 0])):
            if event < 0:
                continue
            frames = int((np.asarray(batch.frame_segment[row]) > 0).sum())
            # Decoded at full capacity, so that one program serves every length.
            real, guess = np.asarray(batch.latents[row]), dreamt[row]
            copied = np.asarray(copy_last_latents(policy.codec, codec, real[:, :1], real.shape[1]))
            pixels = _pixels(split, int(event))
            shown = {
                name: np.asarray(policy.codec.decode(codec, z))[:, : pixels.shape[1]]
                for name, z in (("", guess), ("_copy", copied))
            }
            detail = pixels[:, :1] - shown[""][:, :1]
            shown |= {
                "_raw": shown[""] + detail,
                "_copy_raw": np.broadcast_to(pixels[:, :1], pixels.shape),
            }
            for name, z in (("latent", guess), ("latent_copy", copied)):
                sums[name] += float(np.square(z - real)[:, 1:frames].sum())
            for name, clip in shown.items():
                sums[f"pixel{name}"] += float(np.square(clip - pixels)[:, 1:].sum())
            counts["latent"] += real[:, 1:frames].size
            counts["pixel"] += pixels[:, 1:].size
            clips.append(to_uint8(shown["_raw"]))
        progress(int((np.asarray(batch.event_id[:, 0]) >= 0).sum()))
    numbers = {name: total / counts[name.split("_")[0]] for name, total in sums.items()}
    numbers |= {
        f"{kind}_mse_vs_copy_last": numbers[f"{kind}{tail}"] / numbers[f"{kind}_copy{tail}"]
        for kind, tail in (("latent", ""), ("pixel", ""))
    }
    numbers["pixel_raw_mse_vs_copy_last"] = numbers["pixel_raw"] / numbers["pixel_copy_raw"]
    return numbers, clips


def to_uint8(clip: np.ndarray) -> np.ndarray:
    """[-1, 1] to pixels."""
    return np.clip((clip + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def _pixels(split: Split, event: int) -> np.ndarray:
    frames = split.events[event].frames
    stacked = np.stack([frames[view] for view in split.latents.manifest.views])
    return stacked.astype(np.float32) / np.float32(127.5) - 1
