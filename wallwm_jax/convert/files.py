"""A folder of public weights as it lies on disk: config.json and safetensors.

Everything that can be wrong with the files themselves is found here, from
their headers, before any tensor is read. Files that can run code when they are
opened (pickles) are never opened.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from wallwm_jax.convert.errors import ConvertError, brief, some

FLOATS = ("F64", "F32", "F16", "BF16")
"""Element types that are parameters, as safetensors spells them."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SHARD = re.compile(r"-\d+-of-\d+$")
ROWS_BYTES = 64 * 2**20
"""How much of a long tensor is held at once where it can be read in parts."""


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ConvertError: missing, unreadable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConvertError(f"{path}: missing; {what}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConvertError(f"{path}: cannot be read ({brief(error)}); {what}") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{path}: holds a JSON {type(content).__name__}, not an object; {what}")
    return content


def read_config_file(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder.

    Raises:
      ConvertError: no such folder, no config.json, or it is no JSON object.
    """
    if not folder.is_dir():
        raise ConvertError(
            f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; "
            "name the folder that holds config.json and the safetensors files"
        )
    if not (folder / "config.json").exists() and (folder / "model_index.json").exists():
        raise ConvertError(
            f"{folder}: is a whole pipeline; name one of its parts, such as "
            f"{folder / 'transformer'}, {folder / 'vae'} or {folder / 'text_encoder'}"
        )
    return read_json(folder / "config.json", "it must say what model the folder holds")


def find_weights(folder: Path, stem: str) -> dict[Path, list[str] | None]:
    """The files that hold a model's tensors.

    Args:
      folder: of the model.
      stem: file name without suffix, "model" or "diffusion_pytorch_model".

    Returns:
      File -> names of the tensors that an index places there, None where there
      is no index.

    Raises:
      ConvertError: none, more than one set, or only files that we do not open.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    shards = [p.name for p in sorted(folder.glob(f"{stem}-*.safetensors")) if SHARD.search(p.stem)]
    if single.exists() and (index.exists() or shards):
        raise ConvertError(
            f"{folder}: holds both {single.name} and {index.name if index.exists() else shards[0]}; "
            "remove the set that is not meant"
        )
    if single.exists():
        return {single: None}
    if index.exists():
        return _read_index(index, shards)
    if shards:
        raise ConvertError(
            f"{folder}: has {some(shards)} but no {index.name}; copy the index of these shards too"
        )
    raise ConvertError(_why_no_weights(folder, stem))


def _why_no_weights(folder: Path, stem: str) -> str:
    names = sorted(p.name for p in folder.iterdir())
    variants = [n for n in names if n.startswith(f"{stem}.") and ".safetensors" in n]
    if variants:
        return (
            f"{folder}: holds only the variant {some(variants)}; rename it without the variant "
            f"({stem}.safetensors) in a folder of its own if that precision is meant"
        )
    pickles = [n for n in names if n.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder / pickles[0]}: is a pickle, which can run code when it is opened, and is refused; "
            f"get the model as {stem}.safetensors, or save it again with safe_serialization=True"
        )
    others = [n for n in names if n.endswith(".safetensors")]
    found = f"it has {some(others)}" if others else "it has no safetensors file"
    return f"{folder}: no {stem}.safetensors and no {stem}.safetensors.index.json ({found}); download the weights"


def _read_index(index: Path, shards: list[str]) -> dict[Path, list[str] | None]:
    """Shards and what an index places in each; checks that they are there."""
    places = read_json(index, "copy it again").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ConvertError(f"{index}: has no weight_map; copy it again")
    held: dict[str, list[str]] = {}
    for tensor, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ConvertError(
                f"{index}: places {tensor} in {file!r}, which is not a file of this folder; copy it again"
            )
        held.setdefault(file, []).append(tensor)
    missing = [file for file in sorted(held) if not (index.parent / file).is_file()]
    if missing:
        raise ConvertError(
            f"{index}: names {some(missing)}, which is not there; download the missing shard"
        )
    stray = sorted(set(shards) - held.keys())
    if stray:
        raise ConvertError(
            f"{index}: does not name {some(stray)}, which lies beside it; remove what does not belong"
        )
    return {index.parent / file: tensors for file, tensors in sorted(held.items())}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a header says of one tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a model's files, described at once and read one by one.

    Read through `pread`, not through a memory map: pages of a map count as
    this process's memory for as long as the file is open.
    """

    def __init__(self, files: dict[Path, list[str] | None]):
        """Opens the files and reads their headers.

        Raises:
          ConvertError: a file is no whole safetensors file, disagrees with the
            index, or holds what are no parameters.
        """
        self._files = contextlib.ExitStack()
        self._open: dict[Path, Any] = {}
        self.specs: dict[str, Spec] = {}
        try:
            for file, promised in files.items():
                self._add(file, promised)
            _refuse_other_types(self.specs)
        except BaseException:
            self._files.close()
            raise

    def _add(self, file: Path, promised: list[str] | None) -> None:
        try:
            handle = self._files.enter_context(safe_open(file, framework="np", backend="pread"))
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConvertError(
                f"{file}: is not a whole safetensors file ({brief(error)}); download it again"
            ) from error
        if promised is not None and (lacking := sorted(set(promised) - slices.keys())):
            raise ConvertError(
                f"{file}: lacks {some(lacking)}, which the index places there; download both again"
            )
        if promised is not None and (stray := sorted(slices.keys() - set(promised))):
            raise ConvertError(
                f"{file}: holds {some(stray)}, which the index does not place there; download both again"
            )
        self._open[file] = handle
        for name, part in slices.items():
            self.specs[name] = Spec(file, part.get_dtype(), tuple(part.get_shape()))

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """One tensor, whole, in memory of its own.

        Raises:
          ConvertError: the file changed or failed since it was opened.
        """
        return self._guarded(name, lambda handle: handle.get_tensor(name))

    def parts(self, name: str) -> Iterator[tuple[Any, Shaped[np.ndarray, "..."]]]:
        """A tensor in runs of rows of at most ROWS_BYTES: (which rows, the rows)."""
        spec = self.specs[name]
        if not spec.shape:
            yield ..., self.read(name)
            return
        row_bytes = 8 * int(np.prod(spec.shape[1:]))
        step = max(1, ROWS_BYTES // max(row_bytes, 1))
        for start in range(0, spec.shape[0], step):
            rows = slice(start, min(start + step, spec.shape[0]))
            yield rows, self._guarded(name, lambda handle: handle.get_slice(name)[rows])  # noqa: B023

    def _guarded(self, name: str, read: Any) -> Shaped[np.ndarray, "..."]:
        file = self.specs[name].file
        try:
            return read(self._open[file])
        except (SafetensorError, OSError) as error:
            raise ConvertError(
                f"{file}: {name} cannot be read ({brief(error)}); download it again"
            ) from error

    def __enter__(self) -> "Weights":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files."""
        self._files.close()


def _refuse_other_types(specs: dict[str, Spec]) -> None:
    strange = [name for name, spec in specs.items() if spec.dtype not in FLOATS]
    if strange:
        first = specs[strange[0]]
        raise ConvertError(
            f"{first.file}: {strange[0]} holds {first.dtype} ({len(strange)} tensors are not of "
            f"{', '.join(FLOATS)}); quantised weights are not read, get the original ones"
        )
