"""What two calls look like from outside: as much as Python code can tell, and no more."""

from collections import namedtuple

import pytest
import torch
from torch import fx, nn

from fxquant.graph.calls import Calls, Contents

Pair = namedtuple("Pair", ("a", "b"))


def proxies(count):
    graph = fx.Graph()
    tracer = fx.Tracer()
    tracer.graph = graph
    return [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(count)]


def looks(make, known="?"):
    """What goes into a call and what comes out, for `make` of three new proxies: both of them."""
    calls = Calls(lambda node: known)
    x, y, z = proxies(3)
    given, gives = make(x, y, z)
    with calls.follow("path", given, x.node.graph) as result:
        result.append(gives())
    (call,) = calls.all
    return call.given, call.gave


def appends(value):
    def make(x, y, z):
        notes = [x]
        return notes, lambda: notes.append(y if value is None else value)

    return make


SAME = {
    "tensors": lambda x, y, z: ([x, y], lambda: z),
    "structure": lambda x, y, z: ([{"a": (x, 1)}], lambda: Pair(y, [None, slice(1)])),
    "a tensor of the arguments": lambda x, y, z: ([x, y], lambda: y),
}
OTHERS = {
    **SAME,
    "the other tensor of the arguments": lambda x, y, z: ([x, y], lambda: x),
    "one tensor twice": lambda x, y, z: ([x, x], lambda: z),
    "None": lambda x, y, z: ([x, y], lambda: None),
    "a number": lambda x, y, z: ([x, y], lambda: 1),
    "that number as a float": lambda x, y, z: ([x, y], lambda: 1.0),
    "another key": lambda x, y, z: ([{"b": (x, 1)}], lambda: Pair(y, [None, slice(1)])),
    "a slice": lambda x, y, z: ([x, y], lambda: slice(z)),
    "another slice": lambda x, y, z: ([x, y], lambda: slice(x)),
    "a list": lambda x, y, z: ([x, y], lambda: [z]),
    "a tuple": lambda x, y, z: ([x, y], lambda: (z,)),
    "appended": appends(None),
    "None appended": appends(0),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_which_nodes_stand_behind_values_is_not_seen(make):
    assert looks(make) == looks(make)
    assert None not in looks(make)


def test_all_else_is_seen():
    found = [looks(make) for make in OTHERS.values()]
    assert len(set(found)) == len(OTHERS)


def test_what_is_known_of_a_tensor_is_seen():
    make = SAME["tensors"]
    assert looks(make, "two rows") != looks(make, "three rows")


def test_an_argument_that_comes_back_is_told_from_another_list():
    def same(x, y, z):
        values = [x]
        return [values], lambda: values

    def other(x, y, z):
        return [[x]], lambda: [x]

    assert looks(same) != looks(other)


HIDING = [object(), torch.ones(1), {1}, lambda: 1, iter([])]


@pytest.mark.parametrize("value", HIDING, ids=[type(value).__name__ for value in HIDING])
def test_what_can_hide_anything_has_no_look(value):
    assert looks(lambda x, y, z: ([value], lambda: x)) == (None, None)
    assert looks(lambda x, y, z: ([x], lambda: value))[1] is None


def test_a_list_that_holds_itself_can_be_looked_at():
    def make(x, y, z):
        values = [x]
        values.append(values)
        return values, lambda: values

    assert looks(make) == looks(make)


def test_calls_lie_inside_calls():
    calls, graph = Calls(lambda node: None), fx.Graph()
    with calls.follow("a", [], graph) as result:
        graph.placeholder("x")
        with calls.follow("a.b", [], graph) as inner:
            graph.placeholder("y")
            inner.append(None)
        result.append(None)
    assert calls.now is None
    outer, inside = calls.all
    assert [call.path for call in inside.around()] == ["a"]
    assert (outer.start, outer.end, inside.start, inside.end) == (0, 2, 1, 2)


def test_a_call_that_fails_has_no_result():
    calls = Calls(lambda node: None)
    with pytest.raises(KeyError), calls.follow("a", [], fx.Graph()):
        raise KeyError
    assert calls.now is None
    assert calls.all[0].gave is None


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = {"a": [1, (2, {3})]}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.values.clear(),
        lambda m: m.values["a"].append(1),
        lambda m: m.values["a"][1][1].add(4),
        lambda m: m.values.__setitem__("a", [1, (2, {3})]),
        lambda m: m.values["a"].__setitem__(0, 1.0),
    ],
)
def test_changed_contents_are_noticed(change):
    model = nn.Sequential(Holder())
    contents = Contents(model)
    model[0].other = 1
    assert not contents.changed()
    change(model[0])
    assert contents.changed()
