"""Checks every jaxtyping annotation of the package while tests run."""

from jaxtyping import install_import_hook

install_import_hook("wallwm_jax", "beartype.beartype")
