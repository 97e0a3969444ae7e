"""Writing films one after another into MP4 files, for `export_lerobot`."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from wallwm_jax.episodes.film import BLOCK, Film
from wallwm_jax.events.export_stats import of_pixels

CODEC, PIXELS, GOP = "libsvtav1", "yuv420p", 2
"""AV1 with a key frame every second frame: what the format's own writer chooses,
because training jumps to single frames."""

QUALITY = {"crf": "30", "preset": "10", "svtav1-params": "lp=1"}
STATS_PICTURES = 100
"""Pictures of an episode whose pixels enter its statistics."""


def even(height: int, width: int) -> tuple[int, int]:
    """The size that is written: the codec has whole pairs of rows and columns only."""
    return height // 2 * 2, width // 2 * 2


class VideoFiles:
    """The MP4 files of one view; a new one is begun when the last is large enough."""

    def __init__(self, folder: Path, key: str, rate: float, megabytes: int, files_per_chunk: int):
        """Opens nothing yet.

        Args:
          key: folder below videos/, and the feature's name.
          rate: frames per second.
          megabytes: size from which a file takes no further film.
        """
        self._folder, self._key = folder, key
        self._rate = Fraction(rate).limit_denominator(1001)
        self._bytes, self._per_chunk = megabytes * 2**20, files_per_chunk
        self._file, self._frames = -1, 0
        self._path = folder
        self._out: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, film: Film) -> tuple[dict, dict[str, np.ndarray]]:
        """Appends a film.

        Returns:
          Where it is (columns of meta/episodes), and statistics of its pixels per
          channel, scaled to 0..1 and of shape [3, 1, 1].
        """
        if self._out is None or self._written() > self._bytes:
            self._begin(film)
        first = self._frames
        chosen = set(np.linspace(0, len(film) - 1, min(STATS_PICTURES, len(film))).astype(int))
        pixels = []
        for start in range(0, len(film), BLOCK):
            for i, picture in enumerate(film[start : start + BLOCK], start):
                if i in chosen:
                    pixels.append(picture[::4, ::4].reshape(-1, 3))
                self._encode(picture)
        chunk, file = divmod(self._file, self._per_chunk)
        place = {
            f"videos/{self._key}/chunk_index": chunk,
            f"videos/{self._key}/file_index": file,
            f"videos/{self._key}/from_timestamp": float(first / self._rate),
            f"videos/{self._key}/to_timestamp": float(self._frames / self._rate),
        }
        return place, of_pixels(np.concatenate(pixels), len(chosen))

    def _written(self) -> int:
        """Bytes of the open file; the encoder may still hold all of the first short films."""
        return self._path.stat().st_size if self._path.exists() else 0

    def _begin(self, film: Film) -> None:
        self.close()
        self._file, self._frames = self._file + 1, 0
        chunk, file = divmod(self._file, self._per_chunk)
        self._path = self._folder / f"videos/{self._key}/chunk-{chunk:03d}/file-{file:03d}.mp4"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("SVT_LOG", "1")  # the encoder tells its settings on stderr otherwise
        self._out = av.open(str(self._path), "w")
        self._stream = self._out.add_stream(
            CODEC, rate=self._rate, options=QUALITY | {"g": str(GOP)}
        )
        self._stream.height, self._stream.width = even(*film.shape[1:3])
        self._stream.pix_fmt = PIXELS
        self._stream.time_base = 1 / self._rate

    def _encode(self, picture: np.ndarray) -> None:
        cropped = np.ascontiguousarray(picture[: self._stream.height, : self._stream.width])
        frame = av.VideoFrame.from_ndarray(cropped, format="rgb24")
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._out.mux(self._stream.encode(frame))
        self._frames += 1

    def info(self, height: int, width: int) -> dict:
        """What info.json says of the video."""
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "av1",
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": float(self._rate),
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        """Finishes the open file."""
        if self._out is not None:
            self._out.mux(self._stream.encode())
            self._out.close()
            self._out = None
