"""The loader: cached events -> endless stream of packed `Batch`es.

Its position is one number, the batch that comes next. Everything else follows
from it and the seed, so the same batches come whatever the number of worker
processes, and after a restart in a new process.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from wallwm_jax.input.assemble import assemble
from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.input.caption_drop import CaptionDrop
from wallwm_jax.input.elements import Elements, Prefetch
from wallwm_jax.input.fields import empty_sequence
from wallwm_jax.input.latents import LatentStore
from wallwm_jax.input.normalise import InputStatistics
from wallwm_jax.input.plans import EpochPlans
from wallwm_jax.input.source import ItemMaker, PackedSource
from wallwm_jax.input.tokenise import Tokeniser


def make_loader(
    latents: LatentStore,
    *,
    statistics: InputStatistics,
    tokeniser: Tokeniser,
    dims: BatchDims,
    seed: int,
    track: str = "action",
    caption_drop: CaptionDrop | None = None,
    window: int = 512,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
    buffered: int = 2,
    timeout_s: int | float = 120,
) -> "Loader":
    """An endless, checkpointable stream of packed batches of numpy arrays.

    Args:
      latents: cached events of the training split.
      statistics, tokeniser: fitted on that split, kept with the checkpoint.
      dims: sizes of this process's batch.
      seed: of shuffling and caption drop.
      track: caption track that conditions the model.
      caption_drop: None keeps every caption.
      window: events packed together, see `packing.epoch_plan`.
      shard_index, shard_count: this process and how many read together.
      workers: processes that read; 0 reads in a thread of this process.
      buffered: ready batches held, per worker.
      timeout_s: longest wait for a worker's batch; Grain itself waits for ever
        on a worker that is stopped.

    Raises:
      ValueError: `dims` does not match the cache, or an event exceeds it.
    """
    _check_sizes(latents, dims)
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard {shard_index} of {shard_count}; count shards from 0")
    return Loader(
        latents,
        ItemMaker(statistics, tokeniser, dims.text, track),
        dims,
        seed=seed,
        caption_drop=caption_drop,
        window=window,
        shards=(shard_index, shard_count),
        prefetch=Prefetch(workers=workers, batches=buffered, timeout_s=timeout_s),
    )


class Loader:
    """Iterator of `Batch` with `get_state`/`set_state`; made by `make_loader`."""

    def __init__(
        self,
        latents: LatentStore,
        maker: ItemMaker,
        dims: BatchDims,
        *,
        seed: int,
        caption_drop: CaptionDrop | None,
        window: int,
        shards: tuple[int, int],
        prefetch: Prefetch,
    ):
        self._latents, self._maker, self._dims = latents, maker, dims
        self._seed, self._drop, self._window = seed, caption_drop, window
        self._shards, self._prefetch = shards, prefetch
        self._sizes = np.stack([latents.frames, latents.steps, np.ones_like(latents.steps)], axis=1)
        self._capacity = (dims.frames, dims.actions, dims.events)
        self._global_rows = dims.sequences * shards[1]
        self._fingerprint = self._make_fingerprint()
        self._batch = 0
        self._iterator: Elements | None = None
        self._plans = self._new_plans((0, 0))
        self._plans.locate(0)  # an event that fits no sequence is reported here, not in a worker

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          RuntimeError: a worker died or did not answer in time.
        """
        if self._iterator is None:
            self._iterator = Elements(self._source(), self._dims.sequences, self._prefetch)
        arrays = self._iterator.next()
        self._batch += 1
        return Batch(**arrays)

    def get_state(self) -> dict:
        """Position as a JSON-serialisable dict: valid for any number of workers.

        Batches that were prefetched but not returned do not count as read.
        """
        anchor = self._plans.anchor_of(self._batch * self._global_rows)
        return {"batch": self._batch, "anchor": list(anchor), "plan": self._fingerprint}

    def set_state(self, state: dict) -> None:
        """Continues as the loader that gave `state` would have.

        Raises:
          ValueError: that loader had other events, seed, capacities or global
            batch, so its position means nothing here.
        """
        if state["plan"] != self._fingerprint:
            raise ValueError(
                f"loader state belongs to plan {state['plan']} but this loader has "
                f"{self._fingerprint}: events, seed, capacities, window or global batch differ; "
                "restore with the settings of the checkpoint"
            )
        self.close()
        self._batch = int(state["batch"])
        self._plans = self._new_plans(tuple(state["anchor"]))

    def close(self) -> None:
        """Stops workers and threads; the loader may be used again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def _new_plans(self, anchor: tuple[int, int]) -> EpochPlans:
        return EpochPlans(self._sizes, self._capacity, self._seed, self._window, anchor)

    def _source(self) -> PackedSource:
        return PackedSource(
            self._latents,
            self._maker,
            self._plans,
            self._dims,
            seed=self._seed,
            caption_drop=self._drop,
            first_batch=self._batch,
            shard_index=self._shards[0],
            shard_count=self._shards[1],
        )

    def _make_fingerprint(self) -> str:
        """Names everything the order of events depends on, except the position."""
        source = self._latents.manifest.source_hash
        parts = [source, self._capacity, self._seed, self._window, self._global_rows]
        text = json.dumps([*parts, self._sizes.tolist()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def single_event_batches(
    latents: LatentStore,
    *,
    statistics: InputStatistics,
    tokeniser: Tokeniser,
    dims: BatchDims,
    track: str = "action",
    events: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Batches with one event per sequence, in order, for evaluation.

    The last batch is filled with empty sequences (event_id -1 throughout), so
    that shapes never change.

    Args:
      dims: sizes; `dims.events` may be 1.
      events: indices to read; None reads all.

    Raises:
      ValueError: `dims` does not match the cache, or an event exceeds it.
    """
    _check_sizes(latents, dims)
    maker = ItemMaker(statistics, tokeniser, dims.text, track)
    chosen = range(len(latents)) if events is None else events
    for start in range(0, len(chosen), dims.sequences):
        part = chosen[start : start + dims.sequences]
        rows = [assemble([maker(latents[int(i)], int(i))], dims) for i in part]
        rows += [empty_sequence(dims)] * (dims.sequences - len(rows))
        yield Batch.stack(rows)


def _check_sizes(latents: LatentStore, dims: BatchDims) -> None:
    """The cache and the batch must agree on everything that is not a capacity."""
    page = latents.manifest
    want = {"views": len(page.views), "state": page.state_width}
    want |= dict(zip(("height", "width", "channels"), page.latent_shape, strict=True))
    for name, size in want.items():
        if getattr(dims, name) != size:
            raise ValueError(
                f"BatchDims.{name} is {getattr(dims, name)} but latent cache {latents.folder} "
                f"has {size}; set it to {size}"
            )
