"""What the commands that prepare a dataset print about it."""

import pytest

from tool.inventory import MOST, print_counts, print_list

ALL = [("pictures", 17_125, 17_125), ("none of these", 0, 0)]


def test_a_table_tells_what_is_there_and_what_is_not(capsys):
    assert not print_counts([*ALL, ("masks", 12_031, 1_000), ("tags", 5, 1_005)])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "                                    expected     found",
        "pictures                              17,125    17,125  OK",
        "none of these                              0         0  OK",
        "masks                                 12,031     1,000  11,031 missing",
        "tags                                       5     1,005  1,000 more",
    ]


@pytest.mark.parametrize("last, is_whole", [(("masks", 3, 3), True), (("masks", 3, 2), False), (("masks", 3, 4), True)])
def test_all_is_well_where_nothing_is_missing(last, is_whole, capsys):
    assert print_counts([*ALL, last]) is is_whole


def test_a_list_that_is_empty_is_not_printed(capsys):
    print_list("problems", [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", [1, MOST])
def test_a_short_list_is_printed_whole(number, capsys):
    print_list("problems", [f"a{i}.png: wrong" for i in range(number)])
    assert capsys.readouterr().out.splitlines() == ["", f"problems ({number})", *(f"  a{i}.png: wrong" for i in range(number))]


def test_a_long_list_is_printed_in_part_with_its_whole_number(capsys):
    print_list("problems", [f"a{i}.png: wrong" for i in range(MOST + 1234)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"problems ({MOST + 1234:,})"
    assert lines[2:-1] == [f"  a{i}.png: wrong" for i in range(MOST)]
    assert lines[-1] == "  and 1,234 more"
