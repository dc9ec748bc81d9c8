"""How the commands that prepare or check a dataset tell what they found."""

from collections.abc import Sequence

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
