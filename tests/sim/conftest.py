"""Environments shared by the tests of this folder: compiling a scene takes a third of a second."""

import contextlib
import functools

import pytest

from wallwm_jax.sim import gl
from wallwm_jax.sim.metaworld import MetaWorldEnv


@pytest.fixture(scope="session")
def physics_env():
    """task -> environment without pictures, kept for the session."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda task: stack.enter_context(MetaWorldEnv(task, views=())))


@pytest.fixture(scope="session")
def rendering_env():
    """task -> environment with all views, kept for the session; needs a GL library."""
    try:
        gl.require_gl()
    except gl.GLUnavailable as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda task: stack.enter_context(MetaWorldEnv(task)))
