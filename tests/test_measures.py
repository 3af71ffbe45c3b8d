"""benchmarks/measures.py: what every figure of the benchmarks is made with."""

import json
import math

import pytest
import torch

from measures import (
    Rounds,
    best,
    decibels,
    exponent,
    interleaved,
    peak_bytes,
    read,
    timed,
    write,
)


def test_decibels_by_hand():
    """An error of 0.1 beside a signal of 1 lies 20 dB below it."""
    signal = torch.tensor([1.0, -1.0])
    assert decibels(signal, torch.tensor([1.1, -0.9])) == pytest.approx(20, abs=1e-4)
    assert decibels(signal, signal) == math.inf


def test_a_ratio_is_the_median_of_those_within_a_round():
    """3/1, 20/10 and 2/2: the middle is 2, though a round in which both were slow stands alone."""
    rounds = Rounds({"ours": [3.0, 20.0, 2.0], "float": [1.0, 10.0, 2.0]})
    assert rounds.ratio("ours", over="float") == 2.0
    assert rounds.ms("ours") == 3000.0


def test_calls_take_turns_after_the_warm_up():
    called, told = [], []
    calls = {name: lambda name=name: called.append(name) for name in "ab"}
    rounds = interleaved(calls, 2, warm_up=1, tell=lambda: told.append(len(called)))
    assert "".join(called) == "ababab"
    assert told == [2, 4, 6]
    assert [len(rounds.seconds[name]) for name in "ab"] == [2, 2]


def test_a_call_is_timed_with_its_result():
    seconds, result = timed(lambda: sum(range(10_000)))
    assert 0 < seconds < 1
    assert result == 49_995_000
    assert best(lambda: 7)[1] == 7


def test_the_peak_is_what_lies_there_at_once():
    """Two tensors of 4 kB at once, then one of 6 kB alone."""

    def call():
        a = torch.empty(1024)
        b = torch.empty(1024)
        del a, b
        torch.empty(1536)

    assert peak_bytes(call) == 8192


def test_the_exponent_of_a_power():
    assert exponent([10, 100, 1000], [0.3, 3.0, 30.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2)


def test_rows_come_back_and_nothing_is_left_beside_them(tmp_path):
    path = tmp_path / "results" / "rows.json"
    write(path, [{"network": "one", "ratio": 1.25}])
    assert read(path) == [{"network": "one", "ratio": 1.25}]
    assert json.loads(path.read_text())["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.json"
    write(path, [{"ratio": 1.0}])
    with pytest.raises(TypeError):
        write(path, [{"ratio": 1.0}, {"ratio": torch}])
    assert read(path) == [{"ratio": 1.0}]
