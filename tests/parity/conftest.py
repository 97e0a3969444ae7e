"""Parity with the public PyTorch models: runs where the extra is installed.

Without it every file of this folder is left unopened and one line says so.
"""

import importlib.util
import os

import numpy as np
import pytest

NEEDED = ("torch", "accelerate", "diffusers", "transformers")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
NOT_RUN = (
    f"parity tests were not run: {', '.join(MISSING)} not installed; make parity, or pip install -e '.[parity]'"
)

# The libraries ask their hub for files that are not local; here all are.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


class NotRun(pytest.Module):
    """A test file that is not opened, for it imports what is missing."""

    def collect(self):
        # Raised here for every file, so that the summary folds them into one line.
        pytest.skip(NOT_RUN, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Keeps pytest from importing the files of this folder where the extra is missing."""
    return NotRun.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture
def relative_error():
    """max |ours - theirs| / max |theirs|, for arrays and tensors."""

    def measure(ours, theirs):
        ours = np.asarray(ours, np.float64)
        theirs = np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs, np.float64)
        assert ours.shape == theirs.shape
        assert np.isfinite(theirs).all() and np.abs(theirs).max() > 0
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    return measure


@pytest.fixture
def randomise():
    """Gives every parameter of a torch model random values, those that start at 0 or 1 too.

    Matrices are scaled by their inputs so that activations keep their size;
    gains of norms lie around 1, biases and tables around 0.
    """
    import torch

    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim > 1:
                    parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
                else:
                    around = 1.0 if bool((parameter == 1).all()) else 0.0
                    parameter.copy_(around + 0.2 * noise)
        return model.eval()

    return fill


@pytest.fixture
def saved(tmp_path):
    """Writes a torch model with its own library and returns the folder."""

    def write(model, name="model", **options):
        model.save_pretrained(tmp_path / name, safe_serialization=True, **options)
        return tmp_path / name

    return write
