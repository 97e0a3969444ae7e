"""Checks every jaxtyping annotation of the package while tests run."""

import os

from jaxtyping import install_import_hook

# An installed TPU compiler makes jax look for a TPU. To test on another device,
# set the variable: JAX_PLATFORMS=cuda make test.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

install_import_hook("wallwm_jax", "beartype.beartype")
