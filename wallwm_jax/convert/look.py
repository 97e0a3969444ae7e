"""What a folder of weights holds, before any of them is read.

Both layouts behind one door: the public ones (config.json and safetensors) and
the converted one (model.json and Orbax parameters).
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.files import Weights, find_weights, read_config_file
from wallwm_jax.convert.load import Shardings, build, described, family_in, load_pretrained
from wallwm_jax.convert.plan import flat, leaves, nested
from wallwm_jax.convert.store import PAGE, PARAMS, load_converted, read_page
from wallwm_jax.convert.table import Family
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A folder whose config and headers were read and found in order.

    Attributes:
      folder: absolute.
      family: whose model it is.
      module: of its sizes, in the dtype that was asked for.
      dtype: "float32" or "bfloat16".
      files: all that the model depends on, sorted.
    """

    folder: Path
    family: Family
    module: nn.Module
    dtype: str
    files: tuple[Path, ...]

    def load(self, shardings: Shardings = None) -> Params:
        """The parameters, in the module's dtypes; `shardings` as in `load_pretrained`.

        Raises:
          ConvertError: the files changed or failed since the look.
        """
        if not (self.folder / PAGE).is_file():
            return load_pretrained(self.folder, dtype=self.dtype, shardings=shardings)[1]
        wanted = {leaf.entry.ours: leaf.dtype for leaf in leaves(self.family, self.module)}
        stored = flat(load_converted(self.folder, shardings=shardings)[1])
        cast = jax.jit(jax.lax.convert_element_type, static_argnums=1)
        return nested(
            {
                path: x if x.dtype == wanted[path] else cast(x, wanted[path])
                for path, x in stored.items()
            }
        )


def look(folder: Path | str, *, dtype: str = "float32") -> Look:
    """Reads what a folder says of itself; takes milliseconds whatever its size.

    Args:
      folder: in a public layout, or made by `save_converted`.
      dtype: as in `load_pretrained`.

    Raises:
      ConvertError: anything that can be known without reading parameters.
    """
    folder = Path(folder).absolute()
    if (folder / PAGE).is_file():
        family, page = read_page(folder)
        module, _ = build(family, page["config"], dtype, folder)
        found = sorted(p for p in (folder / PARAMS).rglob("*") if p.is_file())
        if not found:
            raise ConvertError(f"{folder / PARAMS}: missing; convert the model again")
        files = (folder / PAGE, *found)
    else:
        config = read_config_file(folder)
        family = family_in(folder, config)
        weights = find_weights(folder, family.weights)
        with Weights(weights) as opened:
            module, _ = described(family, folder, config, dtype, opened)
        files = (folder / "config.json", *sorted(weights))
    return Look(folder=folder, family=family, module=module, dtype=dtype, files=files)
