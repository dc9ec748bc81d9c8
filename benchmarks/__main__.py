"""What parts of this project cost against plain versions of the same formulas, in one run: seconds and peak memory.

    python -m benchmarks [PART ...]

Without arguments it runs all parts, at their default sizes; those that read pictures draw them. `python -m benchmarks.PART --help` tells
the flags of one. benchmarks.cam_precision and benchmarks.crf_pool need a run's maps and are called on their own.
"""

import argparse
import importlib
import sys

from tool import stage

PARTS = {  # and flags that differ from their defaults
    "prototypes": [],
    "training_step": [],
    "cams": [],
    "evaluation": [],
    "input": [],
    "random_walk": ["--grid", "47", "63"],  # half of the default: the dense matrix takes seconds then, not minutes
    "long_list": [],
}


def describe(part: str) -> str:
    return importlib.import_module(f"benchmarks.{part}").__doc__.splitlines()[0]


def main(argv: list[str] | None = None) -> None:
    listed = "\n".join(f"  {part:<16}{describe(part)}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"parts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="one or more of the parts below (default: all)")
    chosen = parser.parse_args(argv).parts
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    for part in chosen or PARTS:
        importlib.import_module(f"benchmarks.{part}").main(PARTS[part])


if __name__ == "__main__":
    sys.exit(stage.run(main))
