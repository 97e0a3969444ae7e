"""Public weights into ours, and back.

    python -m experiments.convert --src=FOLDER --dst=FOLDER [--dtype=bfloat16]
    python -m experiments.convert --src=FOLDER --dst=FOLDER --to=diffusers

The first reads a folder of diffusers, transformers or Wan's own release
(config.json and safetensors) and writes Orbax parameters beside a page that
says what they are; `wallwm_jax.convert.load_converted` opens it. The second
reads such a folder and writes one that diffusers or transformers opens. Both
print every parameter; what is not as it should be ends in one line, with
nothing written. As long as the disk takes: about a minute for 10 GB.
"""

import sys
from pathlib import Path

import flax.linen as nn
from absl import app, flags

from experiments.common import EXPECTED, one_line_errors, quiet
from wallwm_jax.convert import load_converted, load_pretrained, save_converted, save_pretrained
from wallwm_jax.convert.files import read_config_file
from wallwm_jax.convert.load import DTYPES, family_in
from wallwm_jax.convert.plan import leaves
from wallwm_jax.convert.save import family_of
from wallwm_jax.convert.table import Family
from wallwm_jax.convert.write import refuse_occupied
from wallwm_jax.errors import UserError

ORBAX, DIFFUSERS = "orbax", "diffusers"


def convert(src: Path, dst: Path, dtype: str | None = None, to: str = ORBAX) -> list[str]:
    """Converts one folder and returns the lines of the report.

    Args:
      src: a public folder, or with `to` "diffusers" one that this wrote.
      dst: new, or empty.
      dtype: of the parameters; None is float32 on the way in. On the way out
        they keep what they have.
      to: "orbax" or "diffusers".

    Raises:
      UserError: a folder is not as it should be, or options do not go together.
    """
    refuse_occupied(dst)  # before the long part
    if to == ORBAX:
        family = family_in(src, read_config_file(src))
        module, params = load_pretrained(src, dtype=dtype or DTYPES[0])
        save_converted(module, params, dst)
        return report(family, module)
    if dtype is not None:
        raise UserError("--dtype goes with --to=orbax only; parameters are written as they are")
    module, params = load_converted(src)
    save_pretrained(module, params, dst)
    return report(family_of(module), module)


def report(family: Family, module: nn.Module) -> list[str]:
    """A line per parameter (ours, theirs, shape, dtype), and their number."""
    found = leaves(family, module)
    rows = [("ours", "theirs", "shape", "dtype")]
    rows += [
        (leaf.entry.ours, leaf.pattern, str(list(leaf.shape)), leaf.dtype.name) for leaf in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    ]
    sizes = [leaf.size for leaf in found]
    tensors = sum(len(leaf.names) for leaf in found)
    return [*lines, f"{family.name}: {sum(sizes):,} parameters in {tensors} tensors"]


def main(argv: list[str]) -> None:
    """Reads the flags, converts, prints."""
    app.define_help_flags()
    flags.DEFINE_string("src", None, "folder to read")
    flags.DEFINE_string("dst", None, "folder to write; new, or empty")
    flags.DEFINE_enum("dtype", None, DTYPES, "of the parameters (with --to=orbax)")
    flags.DEFINE_enum("to", ORBAX, [ORBAX, DIFFUSERS], "what to write")
    with one_line_errors(*EXPECTED, flags.Error):
        rest = flags.FLAGS(argv)[1:]
        given = flags.FLAGS
        if rest:
            raise UserError(f"{rest[0]!r} is no option; use --src=FOLDER --dst=FOLDER")
        if not given.src or not given.dst:
            raise UserError("name both folders: --src=FOLDER --dst=FOLDER")
        quiet()
        print("\n".join(convert(Path(given.src), Path(given.dst), given.dtype, given.to)))


if __name__ == "__main__":
    main(sys.argv)
