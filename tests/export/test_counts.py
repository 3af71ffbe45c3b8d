"""Numbers that follow the batch: on the line that a few batches show, or refused."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fxquant.errors import ExportError
from fxquant.export.counts import numbers_beyond

ROWS = (2, 3, 6)
STEPS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)


def counting(steps):
    """A graph that computes a number from how many rows there are, step by step."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    number = graph.call_method("size", (x, 0))
    for step, other in steps:
        number = graph.call_function(step, (number, other))
    graph.output(number)
    return fx.GraphModule(nn.Module(), graph), number


def counted(steps, rows):
    n = rows
    for step, other in steps:
        n = step(n, other)
    return n


class Seen(fx.Interpreter):
    """What every node gave."""

    def __init__(self, gm):
        super().__init__(gm)
        self.found = {}

    def run_node(self, n):
        self.found[n] = super().run_node(n)
        return self.found[n]


def runs_of(gm):
    for rows in ROWS:
        seen = Seen(gm)
        seen.run(torch.zeros(rows, 1))
        yield seen.found


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 12)), max_size=4),
       st.sampled_from((1, 7, 100, 4099)))
def test_what_is_on_the_line_of_few_batches_stays_on_it(steps, rows):
    gm, _ = counting(steps)
    a, b, c = (counted(steps, n) for n in ROWS)
    try:
        numbers_beyond(gm.graph, [*runs_of(gm)], ROWS)
    except ExportError:
        return
    if c - b == 3 * (b - a):
        assert counted(steps, rows) == a + (rows - 2) * (b - a)


@pytest.mark.parametrize(("steps", "other"), [
    ([(operator.mul, 9), (operator.floordiv, 10)], "9 of 11 rows, 5 of 6"),
    ([(operator.gt, 8)], "True of 9 rows, False of 6"),
])
def test_it_says_where_a_number_leaves_the_line(steps, other):
    gm, number = counting(steps)
    with pytest.raises(ExportError, match=rf"'{number.name}'.*{other}[\s\S]*batch=…"):
        numbers_beyond(gm.graph, [*runs_of(gm)], ROWS)


@pytest.mark.parametrize("steps", [
    [(operator.sub, 7), (operator.pow, -1), (operator.mul, 2)],  # seven rows have none
    [(operator.truediv, 2), (operator.mul, 3)],  # no whole numbers
])
def test_what_is_on_no_line_is_left_to_those_who_read_it(steps):
    gm, _ = counting(steps)
    numbers_beyond(gm.graph, [*runs_of(gm)], ROWS)
