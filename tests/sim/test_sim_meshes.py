"""Vertex clustering on meshes small enough to check by eye."""

import numpy as np
import pytest

from wallwm_jax.sim import meshes


def _write_stl(path, triangles):
    facets = np.zeros(len(triangles), meshes._STL_TRIANGLE)
    facets["corners"] = triangles
    path.write_bytes(b" " * 80 + np.uint32(len(triangles)).tobytes() + facets.tobytes())


def test_stl_round_trip(tmp_path):
    triangles = np.arange(36.0).reshape(4, 3, 3)
    _write_stl(tmp_path / "a.stl", triangles)
    np.testing.assert_array_equal(meshes.read_stl(tmp_path / "a.stl"), triangles)


def test_a_cut_file_is_named(tmp_path):
    _write_stl(tmp_path / "a.stl", np.zeros((4, 3, 3)))
    (tmp_path / "a.stl").write_bytes((tmp_path / "a.stl").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.stl.*4 triangles"):
        meshes.read_stl(tmp_path / "a.stl")


def test_cells_merge_and_collapsed_faces_go():
    triangles = np.array([
        [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
        [[0.2, 0, 0], [0, 1.2, 0], [1, 0, 0]],  # the same three cells, other way round
        [[0, 0, 0], [0.1, 0, 0], [1, 0, 0]],  # two corners in one cell
    ])  # fmt: skip
    vertices, faces = meshes.cluster(triangles, cell=1.0)
    np.testing.assert_allclose(
        vertices, [[(0 + 0.2 + 0 + 0.1) / 4, 0, 0], [0, 1.1, 0], [1, 0, 0]], atol=1e-12
    )
    np.testing.assert_array_equal(faces, [[0, 2, 1]])  # the orientation of the first


def test_vertices_move_less_than_a_cell_and_faces_are_valid():
    rng = np.random.default_rng(0)
    triangles = rng.normal(size=(500, 1, 3)) * 0.1 + rng.normal(size=(500, 3, 3)) * 0.02
    vertices, faces = meshes.cluster(triangles, cell=0.03)
    corners = triangles.reshape(-1, 3)
    nearest = np.linalg.norm(corners[:, None] - vertices[None], axis=-1).min(axis=1)
    assert nearest.max() <= 0.03 * np.sqrt(3)  # the diagonal of a cell
    assert 0 < len(faces) <= len(triangles)
    assert 0 <= faces.min() and faces.max() < len(vertices)
    a, b, c = faces.T
    assert ((a != b) & (b != c) & (a != c)).all()
    assert len(np.unique(np.sort(faces, axis=1), axis=0)) == len(faces)


def test_a_tiny_cell_keeps_every_face():
    triangles = np.random.default_rng(1).uniform(size=(50, 3, 3))
    vertices, faces = meshes.cluster(triangles, cell=1e-9)
    np.testing.assert_allclose(vertices[faces], triangles, atol=1e-12)
