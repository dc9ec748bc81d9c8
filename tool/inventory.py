"""How the commands that prepare or check a dataset tell what they found."""

from collections.abc import Sequence
from pathlib import Path

from errors import InputError

MOST = 10  # problems of a kind that are told one by one


def print_counts(rows: Sequence[tuple[str, int, int]]) -> bool:
    """Print a table of (what, how many are expected, how many there are); returns whether nothing is missing."""
    print(f"\n{'':<34}{'expected':>10}{'found':>10}")
    for what, expected, found in rows:
        verdict = "OK" if found == expected else f"{expected - found:,} missing" if found < expected else f"{found - expected:,} more"
        print(f"{what:<34}{expected:>10,}{found:>10,}  {verdict}")
    return all(expected <= found for _, expected, found in rows)


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print the first lines under a title with their number; nothing where there are none."""
    if lines:
        print(f"\n{title} ({len(lines):,})")
        for line in lines[:MOST]:
            print(f"  {line}")
        if len(lines) > MOST:
            print(f"  and {len(lines) - MOST:,} more")


def conclude(root: Path, kind: str, title: str, is_whole: bool, problems: Sequence[str]) -> None:
    """Tell the problems, and what comes next. Raises InputError where there are any, or where not all of the dataset is there."""
    print_list("problems", problems)
    if problems or not is_whole:
        raise InputError(f"{root}: prepared, but it is not all of {title} (see above); add what is missing, or go on with this part")
    print(f"\n{root} is ready: bash run_{kind}.sh --dataset_root {root}")
