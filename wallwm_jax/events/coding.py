"""Event <-> bytes: a msgpack dictionary of arrays, images as JPEG.

JPEG at quality 95 without chroma subsampling costs about 2.5 kB for a 64 px
view (raw: 12 kB) at more than 41 dB; the usual 4:2:0 would lose 5 dB on small
coloured objects. Pictures from 128 px on come from video files that hold 4:2:0
already and are stored so: a sixth smaller and a quarter faster to decode, at 42 dB.
Nothing is pickled: a shard from a stranger can hold
wrong numbers, but it cannot run code.
"""

import io

import msgpack
import numpy as np
import simplejpeg
from flax import serialization
from jaxtyping import UInt8
from PIL import Image

from wallwm_jax.episodes import clock
from wallwm_jax.episodes.guard import MAX_PIXELS
from wallwm_jax.episodes.record import Event

QUALITY = 95
LARGE = 128
"""Pixels of the longer side from which chroma is stored at half the resolution."""

TEXT_FIELDS = ("episode_id", "task", "label", "next_caption")
INT_FIELDS = ("seed", "index", "start", "end", "truncated")
FLOAT_FIELDS = ("control_hz", "remaining_seconds")


def encode_image(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """JPEG bytes, quality 95; 4:4:4 below `LARGE` pixels, else 4:2:0."""
    out = io.BytesIO()
    subsampling = 0 if max(image.shape[:2]) < LARGE else 2
    Image.fromarray(image).save(out, "JPEG", quality=QUALITY, subsampling=subsampling)
    return out.getvalue()


def decode_image(
    data: bytes, out: UInt8[np.ndarray, "h w 3"] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Inverse of `encode_image`, up to compression.

    Args:
      data: a JPEG file.
      out: where the picture goes; None makes a new array.

    Raises:
      ValueError: not a whole JPEG, above `MAX_PIXELS`, or not of the size of `out`.
    """
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > MAX_PIXELS or (out is not None and out.shape != (height, width, 3)):
        wanted = "" if out is None else f" where {out.shape[:2]} are expected"
        raise ValueError(f"not a picture of an event: {height} x {width} pixels{wanted}")
    return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)


def check_event(event: Event, stride: int = clock.STRIDE, group: int = clock.GROUP) -> None:
    """Raises ValueError, naming the field, when an event's lengths disagree.

    Frame counts are checked against `clock.event_frames`, which is what every
    later room relies on.
    """
    where = f"episode {event.episode_id}, event {event.index}"
    _, sampled = clock.event_frames(event.length, stride, group)
    lengths = {"actions": (len(event.actions), event.length)}
    for view, frames in event.frames.items():
        lengths[f"frames[{view}]"] = (len(frames), sampled)
    for view, poses in event.extrinsics.items():
        lengths[f"extrinsics[{view}]"] = (len(poses), sampled)
    for name, (have, want) in lengths.items():
        if have != want:
            raise ValueError(
                f"{where}: {name} has {have} rows but {event.length} control "
                f"steps need {want}; rebuild this event from its episode"
            )
    if not event.frames.keys() == event.intrinsics.keys() == event.extrinsics.keys():
        raise ValueError(f"{where}: frames and cameras name different views; give one per view")


def encode_event(event: Event, stride: int = clock.STRIDE, group: int = clock.GROUP) -> bytes:
    """Serialises an event; equal events give equal bytes.

    Raises:
      ValueError: when the event's lengths disagree (see `check_event`).
    """
    check_event(event, stride, group)
    record = {name: getattr(event, name) for name in TEXT_FIELDS + INT_FIELDS + FLOAT_FIELDS}
    record["captions"] = dict(event.captions)
    record["frames"] = {v: _encode_clip(frames) for v, frames in event.frames.items()}
    record["intrinsics"] = dict(event.intrinsics)
    record["extrinsics"] = dict(event.extrinsics)
    record["state"] = event.state
    record["actions"] = event.actions
    record["action_mask"] = event.action_mask
    return serialization.msgpack_serialize(record)


def _encode_clip(frames: np.ndarray) -> list[bytes | None]:
    """JPEG per frame; None where a frame repeats the one before.

    Padding repeats an event's last observation up to three times, and a repeat
    should not cost bytes.
    """
    out: list[bytes | None] = []
    for i, frame in enumerate(frames):
        same = i > 0 and np.array_equal(frame, frames[i - 1])
        out.append(None if same else encode_image(frame))
    return out


def encoded_clip(frames: list[bytes | None]) -> list[bytes]:
    """The stored JPEGs of one view with repeats filled in, nothing decoded."""
    filled: list[bytes] = []
    for data in frames:
        filled.append(filled[-1] if data is None else data)
    return filled


def decode_record(data: bytes) -> dict:
    """The stored dictionary as it is, images still encoded.

    Raises:
      ValueError: when the bytes are not such a dictionary.
    """
    try:
        record = serialization.msgpack_restore(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not an event record: {error}") from error
    if not isinstance(record, dict) or "actions" not in record:
        raise ValueError("not an event record: no field 'actions'")
    return record


def decode_event(data: bytes, stride: int = clock.STRIDE, group: int = clock.GROUP) -> Event:
    """Inverse of `encode_event` (frames up to JPEG compression).

    Raises:
      ValueError: on bytes that are not an event, or whose lengths disagree.
    """
    record = decode_record(data)
    views = record["frames"]
    event = Event(
        **{name: record[name] for name in TEXT_FIELDS + INT_FIELDS + FLOAT_FIELDS},
        captions=record["captions"],
        frames={view: _decode_clip(clip) for view, clip in views.items()},
        intrinsics={view: record["intrinsics"][view] for view in views},
        extrinsics={view: record["extrinsics"][view] for view in views},
        state=record["state"],
        actions=record["actions"],
        action_mask=record["action_mask"],
    )
    check_event(event, stride, group)
    return event


def _decode_clip(clip: list[bytes | None]) -> np.ndarray:
    if not clip or clip[0] is None:
        raise ValueError("not an event record: a view has no first picture")
    first = decode_image(clip[0])
    frames = np.empty((len(clip), *first.shape), np.uint8)
    frames[0] = first
    for i, data in enumerate(clip[1:], start=1):
        if data is None:
            frames[i] = frames[i - 1]
        else:
            decode_image(data, frames[i])
    return frames
