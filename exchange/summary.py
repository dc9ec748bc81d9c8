"""Text files, and what the commands that prepare a dataset print at their end.

That is a table of counts, the problems, and the next command.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import InputError
from tool.outputs import atomic_write

MAX_LINES = 10  # problems that are printed one by one


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file. Raises InputError if the disk refuses."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode())


def write_missing(path: Path, text: str, overwrite: bool) -> list[str]:
    """Write a text file unless it is there; one that stays with other content is a problem."""
    if overwrite or not path.is_file():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        return [
            f"{path}: kept, though it would now get other content; delete it, or use --overwrite"
        ]
    return []


@dataclass(frozen=True)
class Count:
    """How many there should be of something, and how many there are."""

    what: str
    expected: int
    actual: int

    @property
    def is_enough(self) -> bool:
        return self.actual >= self.expected

    @property
    def verdict(self) -> str:
        if self.actual < self.expected:
            return f"{self.expected - self.actual:,} missing"
        if self.actual > self.expected:
            return f"{self.actual - self.expected:,} more"
        return "OK"


def print_counts(counts: Sequence[Count]) -> None:
    """Print a table of what is expected and what there is."""
    print(f"\n{'':<34}{'expected':>10}{'found':>10}")
    for count in counts:
        numbers = f"{count.expected:>10,}{count.actual:>10,}"
        print(f"{count.what:<34}{numbers}  {count.verdict}")


def print_problems(title: str, problems: Sequence[str]) -> None:
    """Print the first problems under a title with their number; nothing if there are none."""
    if not problems:
        return
    lines = [f"{title} ({len(problems):,})", *problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"and {len(problems) - MAX_LINES:,} more")
    print("\n" + "\n  ".join(lines))


def finish(root: Path, kind: str, title: str, is_whole: bool, problems: Sequence[str]) -> None:
    """Print the problems, or the next command if there are none.

    kind: of --dataset; title: the dataset's full name. Raises InputError if there are problems, or
    if the dataset is not whole.
    """
    print_problems("problems", problems)
    if problems or not is_whole:
        raise InputError(
            f"{root}: prepared, but it is not all of {title} (see above);"
            " add what is missing, or use this part"
        )
    print(f"\n{root} is ready: bash run_{kind}.sh --dataset_root {shlex.quote(str(root))}")
