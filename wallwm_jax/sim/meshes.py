"""Thins the robot's meshes, so that software rendering is not bound by vertices.

The Sawyer arm has 67 thousand triangles for pictures of 64 pixels. Vertex
clustering (all vertices in one cell of a grid become their mean, faces that
collapse are dropped) keeps about a sixth of them and needs nothing but numpy.
"""

import pathlib

import numpy as np
from jaxtyping import Float64, Int64

CELL = 0.012  # metres: a quarter of a pixel in the ego view at 64 px

_STL_HEADER = 84  # 80 bytes of text and a uint32 with the number of triangles
_STL_TRIANGLE = np.dtype(
    [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
)


def read_stl(path: pathlib.Path) -> Float64[np.ndarray, "faces 3 3"]:
    """Triangle corners of a binary STL file, in its own unit (metres here).

    Raises:
      ValueError: the size of the file disagrees with its triangle count.
    """
    raw = path.read_bytes()
    count = int(np.frombuffer(raw, "<u4", 1, 80)[0]) if len(raw) >= _STL_HEADER else 0
    if len(raw) < _STL_HEADER + count * _STL_TRIANGLE.itemsize:
        raise ValueError(
            f"{path}: {len(raw)} bytes are too few for the {count} triangles of its header; "
            "reinstall the package that ships it"
        )
    triangles = np.frombuffer(raw, _STL_TRIANGLE, count, _STL_HEADER)
    return triangles["corners"].astype(np.float64)


def cluster(
    triangles: Float64[np.ndarray, "faces 3 3"], cell: float = CELL
) -> tuple[Float64[np.ndarray, "vertices 3"], Int64[np.ndarray, "kept 3"]]:
    """Merges the vertices that share a grid cell of the given edge (metres).

    Returns:
      Vertices (the mean of each cell's members) and the faces, as vertex
      indices, that still have three different corners; each face once.
    """
    corners = triangles.reshape(-1, 3)
    cells = np.round(corners / cell).astype(np.int64)
    _, owner = np.unique(cells, axis=0, return_inverse=True)
    owner = owner.ravel()  # numpy 2.0 returned a column here
    members = np.bincount(owner)
    vertices = np.stack([np.bincount(owner, x) for x in corners.T], axis=1) / members[:, None]
    faces = owner.reshape(-1, 3).astype(np.int64)
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (a != c)]
    # Opposite sides of a thin plate fall on the same three cells: keep one.
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return vertices, faces[np.sort(first)]
