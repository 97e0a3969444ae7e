"""A public dataset as parts and a recipe for the runner.

source --> survey (views, rate) --> parts of a few episodes --> prepare.prepared
"""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from wallwm_jax.episodes.guard import SourceError
from wallwm_jax.episodes.record import Annotation, Episode
from wallwm_jax.episodes.source import Skipped, Source
from wallwm_jax.events import captioners, prepare, sync
from wallwm_jax.events.manifest import file_sha256
from wallwm_jax.events.prepare import Preparation
from wallwm_jax.events.runner import Part, Recipe

IMPORT_VERSION = 3  # raise when importing changes what it makes
EPISODES_PER_SHARD = 32
SURVEYED = 16
"""Episodes read (numbers only) to learn a dataset's views and rate."""

SYNCED = 24
"""Episodes watched to learn the natural lags of a dataset."""

FOLLOWED = 96
"""Episodes (numbers only) from which it is learnt how the state follows the actions."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What most of the first episodes have: views in order, control steps per second."""

    views: tuple[str, ...]
    control_hz: float


def survey(source: Source) -> Survey:
    """Looks at the first episodes' numbers; no picture is decoded.

    Raises:
      SourceError: no episode can be read; the first reason is told.
    """
    seen: list[Survey] = []
    first_error: SourceError | None = None
    for key in source.keys[:SURVEYED]:
        try:
            episode = source.read(key)
        except SourceError as error:
            first_error = first_error or error
            continue
        seen.append(Survey(tuple(episode.frames), episode.control_hz))
    if seen:
        # Of equally common ones the first: the order of the dataset decides.
        return collections.Counter(seen).most_common(1)[0][0]
    if first_error is not None:
        raise first_error
    why = f"; the first: {source.skipped[0].reason}" if source.skipped else ""
    raise SourceError(f"{source.folder} has no episode that can be read{why}")


def natural_lags(source: Source) -> dict[str, sync.Natural]:
    """Task -> the lags of a dataset's episodes, from up to `FOLLOWED` of them; "" for all tasks.

    Decodes the pictures of up to `SYNCED` once, small. Empty when no episode is sure.
    """
    watched, results = set(_spread(SYNCED, source)), []
    for key in sorted(watched | set(_spread(FOLLOWED, source)), key=source.keys.index):
        try:
            episode = source.read(key)
            if episode.arms and episode.frames:
                results.append(sync.measure(episode, motion=None if key in watched else {}))
        except (SourceError, ValueError) as error:
            logging.info("not measured: %s", error)
    whole = sync.natural_lags(results)
    return sync.natural_by_task(results) | ({"": whole} if whole else {})


def _spread(most: int, source: Source) -> list[str]:
    """Up to `most` keys, evenly from the first to the last."""
    count = min(most, len(source.keys))
    chosen = np.unique(np.linspace(0, len(source.keys) - 1, count).round().astype(int))
    return [source.keys[i] for i in chosen]


def make_parts(
    source: Source, episodes_per_shard: int = EPISODES_PER_SHARD, held_out: float = 0.0
) -> list[Part]:
    """Splits in the order of their first episode, each cut into shards.

    Args:
      held_out: share of the training episodes that become "validation", and as
        much again "test", at least one each. Which ones follows from their names.

    Raises:
      ValueError: less than one episode a shard, or a share outside 0..0.4.
    """
    if episodes_per_shard < 1:
        raise ValueError(f"{episodes_per_shard} episodes per shard; give at least 1")
    if not 0 <= held_out <= 0.4:
        raise ValueError(f"a share of {held_out} held out twice; give 0..0.4")
    drawn = _drawn([key for key in source.keys if source.split_of(key) == "train"], held_out)
    by_split: dict[str, list[str]] = {}
    for key in source.keys:
        by_split.setdefault(drawn.get(key, source.split_of(key)), []).append(key)
    return [
        Part(
            f"{first // episodes_per_shard:05d}",
            split,
            tuple(keys[first : first + episodes_per_shard]),
        )
        for split, keys in by_split.items()
        for first in range(0, len(keys), episodes_per_shard)
    ]


def _drawn(keys: Sequence[str], share: float) -> dict[str, str]:
    """Key -> "validation" or "test" of the held-out ones: the first in an order by hash."""
    if not share:
        return {}
    order = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    count = max(1, round(share * len(keys)))
    names = ["validation"] * count + ["test"] * count
    return dict(zip(order[: max(0, len(keys) - 1)], names, strict=False))


def record(part: Part, *, source: Source) -> Iterator[Episode | Skipped]:
    """The episodes of a part; one that cannot be read becomes its reason."""
    for key in part.items:
        try:
            yield source.read(str(key))
        except SourceError as error:
            yield Skipped(str(key), str(error))


def make_recipe(
    source: Source,
    options: Preparation,
    *,
    importer_options: Mapping[str, Any] | None = None,
    human: Mapping[str, tuple[Annotation, ...]] | None = None,
    hash_files: bool = True,
) -> Recipe:
    """How a source becomes a store.

    Args:
      options: of the pipeline.
      importer_options: what the source was opened with, for the settings.
      human: episode id -> hand-made marks, see `captioners.with_human`.
      hash_files: record the SHA-256 of every file of the source. Most public
        formats carry no checksums of their own, so this is what later tells a
        damaged copy from a good one. False records sizes only.
    """
    files = source_files(source.folder, hash_files)
    marks = {key: [dataclasses.asdict(m) for m in notes] for key, notes in (human or {}).items()}
    captioner = captioners.with_human(human) if human else captioners.default
    return Recipe(
        record=functools.partial(record, source=source),
        process=functools.partial(prepare.prepared, options=options, captioner=captioner),
        settings={
            "version": IMPORT_VERSION,
            "source": _digest(files),
            "format": source.format,
            "importer": dict(importer_options or {}),
            "preparation": dataclasses.asdict(options),
            "human": _digest(marks),
        },
        format=source.format,
        skipped=source.skipped,
        warnings=source.warnings,
        beside={"sources.json": files},
        root=str(source.folder),
        stride=options.stride,
        group=options.group,
    )


def source_files(folder: Path, hashed: bool = True) -> dict[str, dict[str, Any]]:
    """Relative path -> {"bytes", "sha256"} of every ordinary file of a dataset, sorted."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size}
        | ({"sha256": file_sha256(p)} if hashed else {})
        for p in paths
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


__all__ = ["Survey", "make_parts", "make_recipe", "record", "source_files", "survey"]
