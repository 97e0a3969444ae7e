"""Draws the report of a finished run again: python -m experiments.report --run runs/demo."""

import argparse
from pathlib import Path

from experiments.common import EXPECTED, one_line_errors
from wallwm_jax.evaluate.report import write_report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    with one_line_errors(*EXPECTED):
        print(f"report: {write_report(parser.parse_args().run)}")


if __name__ == "__main__":
    main()
