"""The GL check: what it picks, and what it says when there is nothing to pick."""

import subprocess
import sys

import pytest

from wallwm_jax.sim import gl


def test_no_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_loadable", lambda names: False)
    with pytest.raises(gl.GLUnavailable, match="apt-get install -y libosmesa6") as caught:
        gl.require_gl()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted, other", [("osmesa", "egl"), ("egl", "osmesa")])
def test_the_users_choice_wins_or_is_named(monkeypatch, wanted, other):
    monkeypatch.setenv("MUJOCO_GL", wanted)
    libraries = dict(gl.LIBRARIES)
    monkeypatch.setattr(gl, "_loadable", lambda names: names == libraries[wanted])
    assert gl.require_gl() == wanted
    # The other one being there does not help a user who asked for this one.
    monkeypatch.setattr(gl, "_loadable", lambda names: names == libraries[other])
    with pytest.raises(gl.GLUnavailable, match=wanted):
        gl.require_gl()


def test_egl_is_the_fallback_without_osmesa(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "_loadable", lambda names: names == dict(gl.LIBRARIES)["egl"])
    assert gl.require_gl() == "egl"


def test_a_library_that_is_not_there_cannot_be_loaded():
    assert not gl._loadable(("libnosuchthing.so.1",))


def test_the_package_and_the_task_table_load_no_simulator():
    code = (
        "import sys, wallwm_jax, wallwm_jax.sim.tasks;"
        "assert not {'mujoco', 'metaworld', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
