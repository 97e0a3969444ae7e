"""Border mask: latent cells on a synthetic black border (method section 2, Border mask).

Letterboxed sources bring black rows or columns that say nothing about the
world. They never count in a loss. Whether a source is letterboxed is known
where it is read, not guessed: a simulator's night sky is black as well.
"""

import numpy as np
from jaxtyping import Bool, UInt8


def visible_cells(
    frames: UInt8[np.ndarray, "t height width 3"], grid: tuple[int, int], threshold: int = 2
) -> Bool[np.ndarray, "h w"]:
    """True on cells without any border pixel.

    A border is a run of rows or columns from an edge inwards that is black in
    every frame. Black inside the picture, or in some frames only, is content.

    Args:
      frames: one view of one event.
      grid: latent cells (h, w); they divide the picture evenly.
      threshold: largest channel value that still counts as black.

    Raises:
      ValueError: the grid does not divide the picture.
    """
    height, width = frames.shape[1:3]
    if height % grid[0] or width % grid[1]:
        raise ValueError(
            f"a {grid[0]}x{grid[1]} latent grid does not divide {height}x{width} pixels; "
            "resize the frames"
        )
    dark = frames.max(axis=(0, 3)) <= threshold
    rows, columns = _edge_run(dark.all(1)), _edge_run(dark.all(0))
    border = rows[:, None] | columns[None, :]
    cells = border.reshape(grid[0], height // grid[0], grid[1], width // grid[1])
    return ~cells.any(axis=(1, 3))


def _edge_run(black: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """True on the runs of True that touch either end."""
    first = np.logical_and.accumulate(black)
    last = np.logical_and.accumulate(black[::-1])[::-1]
    return first | last
