"""Writing: one shard at a time, then the whole store, each made visible by a rename.

A shard is complete exactly when its index file exists, because the index is
written last. So a run that was killed finds finished shards by their index and
makes only the others again; a store is complete exactly when its folder has
its final name.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

from array_record.python import array_record_module as array_record

from wallwm_jax.episodes import clock
from wallwm_jax.episodes.record import TRACKS, Event
from wallwm_jax.events import coding, manifest
from wallwm_jax.events.manifest import StoreError
from wallwm_jax.files import write_json

# One record per chunk, for random access; JPEG does not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"

NUMBER_COLUMNS = ("length", "latent_frames", "start", "seed", "event", "remaining_seconds")
TEXT_COLUMNS = (
    "task", "episode", "label", "caption", "next_caption", "task_caption", "subtask", "segment",
)  # fmt: skip


def index_row(event: Event, stride: int, group: int) -> dict:
    """The light description of one event, in the columns of `EventIndex`."""
    generated, _ = clock.event_frames(event.length, stride, group)
    return {
        "length": event.length,
        "latent_frames": 1 + generated,
        "start": event.start,
        "seed": event.seed,
        "event": event.index,
        "remaining_seconds": event.remaining_seconds,
        "task": event.task,
        "episode": event.episode_id,
        "label": event.label,
        "caption": event.captions["action"],
        "next_caption": event.next_caption,
        "task_caption": event.captions["task"],
        "subtask": event.captions["subtask"],
        "segment": event.captions["segment"],
    }


class ShardWriter:
    """Context manager that writes one shard; nothing is left when the block raises.

    Args:
      folder: existing folder of the store being built.
      name: file stem, e.g. "train-drawer-open".
      settings: recorded in the index; `finished_shard` compares it on resume.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str,
        split: str,
        settings: dict | None = None,
        stride: int = clock.STRIDE,
        group: int = clock.GROUP,
    ):
        self._path = pathlib.Path(folder) / f"{name}.array_record"
        self._index_path = pathlib.Path(folder) / f"{name}.index.json"
        # The process number keeps an orphan of a killed run from writing into our file.
        self._temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        self._split, self._settings = split, settings or {}
        self._stride, self._group = stride, group
        self._rows: list[dict] = []
        self._skipped: list[dict[str, str]] = []
        self._common: dict | None = None
        # ArrayRecordWriter does not say why it cannot open a file; Python does.
        try:
            self._temporary.touch()
        except OSError as error:
            raise StoreError(
                f"cannot write {self._temporary} ({error.strerror}); choose a writable folder"
            ) from error
        self._writer = array_record.ArrayRecordWriter(str(self._temporary), WRITER_OPTIONS)

    def add(self, event: Event) -> None:
        """Appends an event.

        Raises:
          ValueError: mismatched lengths, a missing caption track, or views,
            image size or control rate other than the shard's first event.
        """
        missing = [t for t in TRACKS if t != "human" and t not in event.captions]
        if missing:
            raise ValueError(
                f"episode {event.episode_id}, event {event.index}: no caption for {missing}; "
                "every event needs all four tracks"
            )
        common = self._describe(event)
        if self._common is not None and common != self._common:
            raise ValueError(
                f"episode {event.episode_id}: {common} but the shard holds {self._common}; "
                "keep different set-ups in different stores"
            )
        data = coding.encode_event(event, self._stride, self._group)
        self._writer.write(data)
        self._common = common
        self._rows.append(index_row(event, self._stride, self._group))

    def _describe(self, event: Event) -> dict:
        sizes = {images.shape[1:3] for images in event.frames.values()}
        if len(sizes) != 1 or len(set(*sizes)) != 1:
            raise ValueError(
                f"episode {event.episode_id}: images of {sorted(sizes)} pixels; "
                "every view must be square and of one size"
            )
        return {
            "views": list(event.frames),
            "image_size": sizes.pop()[0],
            "control_hz": event.control_hz,
            "stride": self._stride,
            "group": self._group,
        }

    def skip(self, episode_id: str, reason: str) -> None:
        """Records that an episode gave no events, and why."""
        self._skipped.append({"episode": episode_id, "reason": reason})

    def commit(self) -> None:
        """Closes the shard and makes it visible, its index last.

        Raises:
          StoreError: when the shard holds no event, or the disk is full.
        """
        self._writer.close()
        if not self._rows:
            reasons = sorted({s["reason"] for s in self._skipped})
            raise StoreError(f"{self._path.name}: no event to store; skipped because: {reasons}")
        # A full disk is reported by close() only sometimes; counting is cheap.
        if _count(self._temporary) != len(self._rows):
            raise StoreError(
                f"{self._path} was not written whole (disk full?); free space and run again"
            )
        os.replace(self._temporary, self._path)
        columns = {name: [row[name] for row in self._rows] for name in self._rows[0]}
        write_json(
            self._index_path,
            {
                "shard": self._path.name,
                "split": self._split,
                "records": len(self._rows),
                "sha256": manifest.file_sha256(self._path),
                "settings": self._settings,
                "skipped": self._skipped,
                "columns": columns,
                **(self._common or {}),
            },
            sort_keys=True,
        )

    def abandon(self) -> None:
        """Drops what was written."""
        if self._writer.is_open():
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.abandon()


def _count(path: pathlib.Path) -> int:
    reader = array_record.ArrayRecordReader(str(path), "readahead_buffer_size:0")
    try:
        return reader.num_records() if reader.ok() else -1
    finally:
        reader.close()


def finished_shard(folder: str | os.PathLike, name: str, settings: dict) -> bool:
    """True when shard `name` is complete, undamaged and made with `settings`."""
    folder = pathlib.Path(folder)
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return False
    try:
        value = manifest.read_json(index)
    except StoreError:
        return False
    path = folder / f"{name}.array_record"
    return (
        value.get("settings") == settings
        and path.is_file()
        and manifest.file_sha256(path) == value.get("sha256")
    )


def write_manifest(folder: str | os.PathLike, names: Sequence[str], settings: dict) -> None:
    """Joins finished shards into a manifest; the order of `names` is kept.

    Raises:
      StoreError: when a shard's index is missing, or shards disagree on views,
        image size or rates.
    """
    folder = pathlib.Path(folder)
    files = [f"{name}.index.json" for name in names]
    indexes = {file: manifest.read_json(folder / file) for file in files}
    if not indexes:
        raise StoreError(f"{folder}: no shard was written; add at least one event")
    shared = ("views", "image_size", "control_hz", "stride", "group")
    common = [{key: index[key] for key in shared} for index in indexes.values()]
    for name, one in zip(indexes, common, strict=True):
        if one != common[0]:
            raise StoreError(f"{folder / name}: {one} but the first shard has {common[0]}")
    lengths = [n for index in indexes.values() for n in index["columns"]["length"]]
    value = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "tasks": _unique(t for i in indexes.values() for t in i["columns"]["task"]),
        "splits": _splits(list(indexes.values())),
        "event_length": manifest.length_summary(lengths),
        "skipped": [s for index in indexes.values() for s in index["skipped"]],
        "settings": settings,
        "shards": [_shard_entry(folder, name, index) for name, index in indexes.items()],
        **common[0],
    }
    write_json(folder / manifest.MANIFEST, value, sort_keys=True)


def _shard_entry(folder: pathlib.Path, name: str, index: dict) -> dict:
    return {
        "path": index["shard"],
        "split": index["split"],
        "records": index["records"],
        "sha256": index["sha256"],
        "index": name,
        "index_sha256": manifest.file_sha256(folder / name),
    }


def _splits(indexes: Sequence[dict]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for index in indexes:
        split = counts.setdefault(index["split"], {"episodes": 0, "events": 0})
        split["episodes"] += len(set(index["columns"]["episode"]))
        split["events"] += index["records"]
    return counts


def _unique(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
