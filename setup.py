"""Packaging: ships `wallwm_jax` and nothing else.

`configs`, `data` and `experiments` are run from the repository's root
(`python -m experiments.train --config=...`), so that no top-level package named
`data` ever lands in anyone's environment.

The ranges below say what the code is written against; `requirements.lock` says
exactly what it was tested with, and is what `make setup` installs.
"""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

RUNTIME = [
    "absl-py>=2.1",
    "array-record>=0.8.3",
    "av>=14",
    "chex>=0.1.90",
    "einops>=0.8",
    "etils[epath]>=1.12",
    "flax>=0.12.8",
    "google-crc32c>=1.6",
    "grain>=0.2.18",
    "h5py>=3.12",
    "jax>=0.10.2,<0.12",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "ml-dtypes>=0.5",
    "numcodecs>=0.15",
    "numpy>=2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11",
    "pyarrow>=19",
    "safetensors>=0.8",
    "scikit-learn>=1.6",
    "sentencepiece>=0.2",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.9",
    "threadpoolctl>=3.5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

EXTRAS = {
    # metaworld 3.1.1 imports `packaging` and `imageio` without declaring them.
    "sim": ["mujoco==3.3.0", "metaworld==3.1.1", "packaging", "imageio"],
    # Public PyTorch models, only to compare our numbers with theirs, and the TPU
    # compiler, which needs no TPU; `make parity` installs both.
    "parity": [
        "torch==2.13.0", "accelerate", "diffusers", "transformers", "jax[tpu]>=0.10.2,<0.12",
    ],
    # The runner for corpora that outgrow a machine (`--runner beam`).
    # Beam wants protobuf below 7; newer sentencepiece brings code made by protobuf 7.
    "beam": ["apache-beam>=2.77", "sentencepiece<0.2.3"],
    # Checkpoints in a bucket (`--config.checkpoints=gs://...`).
    "gcs": ["gcsfs>=2025.12"],
    "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
    # beartype checks the jaxtyping annotations while tests run; setuptools and
    # wheel let `make setup` install the package without fetching a build room.
    "test": ["beartype>=0.20", "hypothesis", "pytest>=8", "pytest-xdist", "setuptools", "wheel", "zarr>=3"],
}


def version() -> str:
    """Reads `__version__` without importing the package (jax may be absent)."""
    for line in (ROOT / "wallwm_jax" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("wallwm_jax/__init__.py: no __version__ line; add one")


def readme() -> str:
    """The README, or nothing in a source tree that has none yet."""
    path = ROOT / "README.md"
    return path.read_text() if path.is_file() else ""


setuptools.setup(
    name="wallwm-jax",
    version=version(),
    description="WALL-WM in JAX: a World Action Model that learns from semantic events",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # 3.12.0 and 3.12.1 crash on buffers that wait to be collected (python/cpython issue 111211):
    # multiprocessing makes such buffers, and so does gcsfs.
    python_requires=">=3.11,!=3.12.0,!=3.12.1",
    packages=setuptools.find_packages(include=["wallwm_jax", "wallwm_jax.*"]),
    package_data={"wallwm_jax": ["**/*.css"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
