"""What the commands that prepare a dataset write and print."""

import pytest
from common import refused

from exchange import summary
from exchange.summary import Count


def test_a_table_shows_what_is_missing(capsys):
    counts = [Count("images", 17_125, 17_125), Count("tags", 5, 1_005)]
    counts.append(Count("masks", 12_031, 1_000))
    assert [count.is_enough for count in counts] == [True, True, False]
    summary.print_counts(counts)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-3:] == [
        ["images", "17,125", "17,125", "OK"],
        ["tags", "5", "1,005", "1,000", "more"],
        ["masks", "12,031", "1,000", "11,031", "missing"],
    ]


def test_a_whole_dataset_without_problems_is_ready(tmp_path, capsys):
    summary.finish(tmp_path, "voc", "VOC 2012", is_whole=True, problems=[])
    assert f"bash run_voc.sh --dataset_root {tmp_path}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_whole", "number", "rest"),  # the number of problems, and how many of them are not printed
    [(False, 0, None), (True, 10, None), (True, 1011, "1,001")],
)
def test_another_dataset_is_not(is_whole, number, rest, tmp_path, capsys):
    problems = [f"a{i}.png: wrong" for i in range(number)]
    with refused(tmp_path):
        summary.finish(tmp_path, "voc", "VOC 2012", is_whole, problems)
    printed = capsys.readouterr().out
    assert "run_voc.sh" not in printed
    expected = []
    if problems:
        expected = ["", f"problems ({number:,})"]
        expected += [f"  {problem}" for problem in problems[:10]]
    if rest:
        expected.append(f"  and {rest} more")
    assert printed.splitlines() == expected


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_text_that_is_there_stays_without_overwrite(overwrite, tmp_path):
    path = tmp_path / "new/list.txt"
    assert summary.write_missing(path, "ä\n", overwrite) == []
    assert summary.write_missing(path, "ä\n", overwrite) == []
    problems = summary.write_missing(path, "b\n", overwrite)
    if overwrite:
        assert problems == []
        assert path.read_text() == "b\n"
    else:
        assert [problem.partition(": ")[0] for problem in problems] == [str(path)]
        assert path.read_text(encoding="utf-8") == "ä\n"
