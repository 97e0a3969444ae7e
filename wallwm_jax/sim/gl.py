"""Finds an off-screen OpenGL library before MuJoCo is imported.

MuJoCo binds its GL backend the moment it is imported, from MUJOCO_GL, and dies
there with an unreadable message when the library behind that name is missing.
So the choice is made here first. Physics alone needs no GL: without one, MuJoCo
is imported with rendering disabled and only `require_gl` complains.
"""

import ctypes
import ctypes.util
import importlib
import os
import types

from wallwm_jax.errors import UserError

LIBRARIES = (
    ("osmesa", ("OSMesa", "libOSMesa.so.8", "libOSMesa.so.6")),
    ("egl", ("EGL", "libEGL.so.1")),
)
"""(backend, names its shared library goes by), most portable first."""

REMEDY = "apt-get install -y libosmesa6"


class GLUnavailable(UserError):
    """No off-screen GL library can be loaded; callers may fall back to physics only."""


def require_gl() -> str:
    """Returns the GL backend MuJoCo renders with ("osmesa", "egl", ...).

    Raises:
      GLUnavailable: one line with the command that installs a library.
    """
    wanted = os.environ.get("MUJOCO_GL", "")
    backend = _choose(wanted)
    if backend == "disable":
        asked = f" for MUJOCO_GL={wanted}" if wanted else " (tried OSMesa and EGL)"
        raise GLUnavailable(
            f"no off-screen OpenGL library can be loaded{asked}; unset MUJOCO_GL and run: {REMEDY}"
        )
    return backend


def import_mujoco() -> types.ModuleType:
    """Imports mujoco with the backend that this machine can load.

    The environment is written, not only read, because MuJoCo has no other knob.
    A choice made by the user is kept as long as it can be loaded.
    """
    os.environ["MUJOCO_GL"] = _choose(os.environ.get("MUJOCO_GL", ""))
    # llvmpipe starts one thread per core for every context; at our image sizes
    # the hand-over costs more than the threads bring (0 = draw in the caller).
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return importlib.import_module("mujoco")


def _choose(wanted: str) -> str:
    """Backend to use: the wanted one if given and loadable, "disable" if there is none."""
    loadable = [name for name, library in LIBRARIES if _loadable(library)]
    if wanted in dict(LIBRARIES):
        return wanted if wanted in loadable else "disable"
    if wanted:  # glfw, wgl, cgl or disable: the user knows
        return wanted
    # OSMesa comes first even beside a GPU: it needs no driver and no device, draws the
    # same pixels everywhere, and our views cost it 3 ms. MUJOCO_GL=egl overrides.
    return loadable[0] if loadable else "disable"


def _loadable(names: tuple[str, ...]) -> bool:
    """Whether one of the shared libraries can really be opened, not only found."""
    for name in names:
        try:
            ctypes.CDLL(ctypes.util.find_library(name) or name)
        except OSError:
            continue
        return True
    return False
