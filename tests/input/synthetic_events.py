"""Small synthetic events and a toy codec: the input room needs no simulator."""

import numpy as np

from wallwm_jax.episodes.record import Event
from wallwm_jax.input.batch import BatchDims
from wallwm_jax.input.latent_build import build_latents
from wallwm_jax.input.latents import LatentStore
from wallwm_jax.input.normalise import fit_statistics
from wallwm_jax.input.tokenise import WordTokeniser

VIEWS = ("ego", "wrist")
CAPTIONS = ("reach the drawer", "grasp the handle", "push the block to the goal", "lift")
PIXELS, CELL, CHANNELS, STATE = 16, 8, 4, 5


def make_event(i: int) -> Event:
    """Event `i`: length, pictures and actions are functions of i alone."""
    rng = np.random.default_rng(i)
    length = int(np.clip(round(15 * np.exp(0.42 * rng.standard_normal())), 2, 48))
    sampled = 1 + 4 * -(-length // 8)
    moved = np.repeat(np.eye(4)[None], sampled, axis=0)
    moved[:, 0, 3] = np.arange(sampled)  # marks which sampled frame a camera belongs to
    mask = np.arange(20) < 10
    return Event(
        episode_id=f"fake/{i:04d}", task="fake", seed=i, index=0, start=0, end=length,
        label="reach", control_hz=40.0,
        captions={"task": "open the drawer", "action": CAPTIONS[i % len(CAPTIONS)]},
        next_caption="", remaining_seconds=length / 40,
        frames={v: rng.integers(1, 256, (sampled, PIXELS, PIXELS, 3), np.uint8) for v in VIEWS},
        intrinsics={v: np.diag([20.0 + n, 20.0, 1.0]) for n, v in enumerate(VIEWS)},
        extrinsics={v: moved for v in VIEWS},
        state=rng.standard_normal(STATE).astype(np.float32) * 3 + 1,
        actions=((rng.standard_normal((length, 20)) + i % 3) * mask).astype(np.float32),
        action_mask=mask,
    )  # fmt: skip


def encode(video: np.ndarray) -> np.ndarray:
    """A toy causal codec: cell means of the key frame and of groups of four."""
    b, t, height, width, _ = video.shape
    cells = video.reshape(b, t, height // CELL, CELL, width // CELL, CELL, 3).mean((3, 5))
    groups = cells[:, 1:].reshape(b, -1, 4, *cells.shape[2:]).mean(2)
    rgb = np.concatenate([cells[:, :1], groups], axis=1)
    return np.concatenate([rgb, rgb[..., :1] ** 2], axis=-1)


def build(events: list[Event], folder, **options) -> LatentStore:
    """The latent cache of some events."""
    options = {"codec_hash": "codec", "source_hash": "source", "views": VIEWS} | options
    return build_latents(events, folder, options.pop("encode", encode), **options)


def loader_settings(latents: LatentStore) -> dict:
    """What `make_loader` and `single_event_batches` both take."""
    dims = BatchDims(
        sequences=3, views=2, frames=12, height=2, width=2, channels=CHANNELS, actions=58,
        events=6, state=STATE, text=8,
    )  # fmt: skip
    return {
        "statistics": fit_statistics(latents[i] for i in range(len(latents))),
        "tokeniser": WordTokeniser.fit(latents.manifest.captions["action"]),
        "dims": dims,
    }


def lengths_like_the_data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latent frames and steps of n events: median 15, 5 % at 4, 95 % below 30 steps."""
    rng = np.random.default_rng(seed)
    steps = np.round(15 * np.exp(rng.standard_normal(n) * np.log(2) / 1.645)).astype(int)
    steps = np.clip(steps, 4, 48)
    steps[rng.random(n) < 0.04] = 4
    return 1 + -(-steps // 8), steps
