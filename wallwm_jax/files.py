"""Files that a reader sees old or new, never half."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Writes JSON under another name and renames it; for one writer at a time.

    Args:
      path: the file; its folder exists.
      value: what JSON can hold.
      sort_keys: gives equal values equal bytes.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=sort_keys) + "\n", encoding="utf-8")
    os.replace(temporary, path)
