"""benchmarks/worse.py: what it calls worse, and how it ends."""

import sys

import pytest

from measures import write
from worse import Change, changes, main, missing


def row(network="resnet18", nodes=7, **figures):
    return {"network": network, "nodes": nodes, "equal": True, **figures}


@pytest.mark.parametrize(
    ("figure", "before", "after", "ratio"),
    [("ms", 2.0, 3.0, 1.5), ("decibels", 40.0, 20.0, 2.0), ("ms", 0.0, 0.0, 1.0)],
)
def test_more_of_a_cost_is_worse_and_less_of_a_gain(figure, before, after, ratio):
    assert Change("", figure, before, after).ratio == ratio


def test_rows_are_known_by_what_is_no_measure():
    before = [row(ms=1.0), row("DARTS", ms=1.0), row(nodes=9, ms=1.0)]
    after = [row("DARTS", ms=4.0), row(ms=2.0, new=1.0)]
    assert [change.ratio for change in changes(before, after)] == [2.0, 4.0]
    assert missing(before, after) == ["resnet18, 9, True"]


@pytest.mark.parametrize(
    ("after", "options", "code"),
    [
        (row(time_ratio=1.04, ms=9.0), ("--only", "ratio"), 0),
        (row(time_ratio=1.04, ms=9.0), (), 1),
        (row(time_ratio=1.2, ms=1.0), ("--only", "ratio", "--worse", "1.25"), 0),
        (row("other", time_ratio=1.0, ms=1.0), (), 1),
    ],
)
def test_it_ends_with_1_where_something_is_worse_or_gone(
    tmp_path, monkeypatch, capsys, after, options, code
):
    one, two = tmp_path / "before.json", tmp_path / "after.json"
    write(one, [row(time_ratio=1.0, ms=1.0)])
    write(two, [after])
    monkeypatch.setattr(sys, "argv", ["worse.py", str(one), str(two), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert "times worse" in capsys.readouterr().out
