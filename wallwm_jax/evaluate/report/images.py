"""Pictures inside the page: frames chosen, tiled and written as data URIs.

A frame of a few dozen pixels is enlarged by the browser; storing it larger would
only make the page heavier. Photographs go in as JPEG: a filmstrip as PNG is
about six times the size and looks the same.
"""

import base64
import dataclasses
import io

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from wallwm_jax.evaluate.report.markup import Markup, tag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detail:
    """How much of each filmstrip is kept: frames per strip and JPEG quality."""

    columns: int
    quality: int


LADDER = (
    Detail(columns=13, quality=90),
    Detail(columns=9, quality=85),
    Detail(columns=7, quality=70),
    Detail(columns=5, quality=50),
    Detail(columns=3, quality=35),
)
"""Tried in order until the page fits its size limit; every example stays in."""


def spread(count: int, columns: int) -> Integer[np.ndarray, "k"]:
    """At most `columns` indices of range(count), even, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, columns)).round().astype(np.int64))


def data_uri(image: UInt8[np.ndarray, "h w 3"], quality: int) -> str:
    """The picture as a JPEG data URI, full colour resolution (4:4:4)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tile(frames: UInt8[np.ndarray, "r t h w 3"], gap: int = 2) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of frames side by side on mid grey, `gap` pixels apart.

    Grey reads as a border on a light and on a dark page alike.
    """
    rows, columns, height, width, _ = frames.shape
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, dtype=np.uint8
    )
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            sheet[top : top + height, left : left + width] = frames[r, c]
    return sheet


def picture(image: UInt8[np.ndarray, "h w 3"], alt: str, quality: int, class_: str) -> Markup:
    """An <img> that carries its own bytes; width and height keep the page from jumping."""
    height, width, _ = image.shape
    return tag(
        "img",
        src=data_uri(image, quality),
        alt=alt,
        width=width,
        height=height,
        class_=class_,
        loading="lazy",
    )
