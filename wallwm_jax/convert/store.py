"""Converted models: Orbax parameters beside a page that says what they are.

<folder>/model.json    family, config and dtype
<folder>/params/       Orbax, the tree of parameters as it is
"""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp

from wallwm_jax.convert.errors import ConvertError, brief
from wallwm_jax.convert.families import FAMILIES
from wallwm_jax.convert.files import read_json
from wallwm_jax.convert.load import DTYPES, Shardings, build, place
from wallwm_jax.convert.plan import check_params, flat, nested
from wallwm_jax.convert.save import family_of, write_json
from wallwm_jax.convert.table import Family
from wallwm_jax.convert.write import new_folder
from wallwm_jax.types import Params

PAGE, PARAMS = "model.json", "params"


def save_converted(module: nn.Module, params: Params, folder: Path | str) -> None:
    """Writes a loaded model so that `load_converted` gives back the same, bit for bit.

    Args:
      module: as `load_pretrained` gives it.
      params: plain or boxed, of the module's shapes.
      folder: new, or empty; made in one go.

    Raises:
      ConvertError: params do not fit the module, or the folder cannot be written.
      ValueError: a module of no family, or one that its public config does not
        describe (run-time settings changed after loading).
    """
    family = family_of(module)
    config = json.loads(json.dumps(family.write_config(module)))
    dtypes = [dtype for dtype in DTYPES if family.read_config(config, dtype) == module]
    if not dtypes:
        raise ValueError(
            f"this {type(module).__name__} has settings that a {family.name} config does not hold; "
            "store the module as it was loaded and change run-time settings afterwards"
        )
    _, found = build(family, config, dtypes[0], Path(folder))
    arrays = flat(params)
    check_params(found, arrays)
    with new_folder(folder) as scratch:
        write_json(scratch / PAGE, {"family": family.name, "dtype": dtypes[0], "config": config})
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(scratch / PARAMS, nested(arrays))


def load_converted(folder: Path | str, *, shardings: Shardings = None) -> tuple[nn.Module, Params]:
    """Module and parameters that `save_converted` wrote.

    Args:
      folder: written by `save_converted` or `experiments.convert`.
      shardings: as in `load_pretrained`.

    Raises:
      ConvertError: the folder is not one, or is damaged.
    """
    folder = Path(folder).absolute()
    family, page = read_page(folder)
    module, found = build(family, page["config"], page["dtype"], folder)
    targets = place(family, module, found, shardings)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        leaf.entry.ours: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=targets[leaf.entry.ours] or here
        )
        for leaf in found
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return module, checkpointer.restore(folder / PARAMS, nested(abstract))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(
            f"{folder / PARAMS}: cannot be read ({brief(error)}); convert the model again"
        ) from error


def read_page(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Family and page ("config", "dtype") of a converted model.

    Raises:
      ConvertError: the folder is not one.
    """
    advice = "make the folder with python -m experiments.convert"
    page = read_json(folder / PAGE, advice)
    family = FAMILIES.get(str(page.get("family")))
    if (
        family is None
        or page.get("dtype") not in DTYPES
        or not isinstance(page.get("config"), dict)
    ):
        raise ConvertError(f"{folder / PAGE}: does not describe a converted model; {advice}")
    return family, page
