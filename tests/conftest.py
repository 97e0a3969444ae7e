"""Checks every jaxtyping annotation of the package while tests run; sums up the parity tests."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

# An installed TPU compiler makes jax look for a TPU. To test on another device,
# set the variable: JAX_PLATFORMS=cuda make test.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

install_import_hook("wallwm_jax", "beartype.beartype")


def pytest_terminal_summary(terminalreporter):
    """One line a file of tests/parity: how far we are from the public model at most."""
    errors = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        found = [value for name, value in report.user_properties if name == "parity_error"]
        if found:
            errors.setdefault(Path(report.nodeid.split("::")[0]).stem, []).extend(found)
    for name, values in sorted(errors.items()):
        terminalreporter.line(
            f"{name}: largest error {max(values):.1e} of the largest value, {len(values)} cases"
        )
