"""Comparisons of different submodules share a trace: the same network as one trace for each."""

import copy
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant.errors import CaptureError
from fxquant.graph import training
from fxquant.graph.compare import largest_differences
from fxquant.graph.edit import SITES
from fxquant.graph.forward import Forward
from fxquant.graph.trace import trace

X = torch.randn(2, 3, 4, 4)


class Block(nn.Module):
    """A convolution and one or two numbers that a script sets."""

    def __init__(self):
        super().__init__()
        self.conv, self.p, self.r = nn.Conv2d(3, 3, 1), 0.0, 0.0


class AtTheEnd(Block):
    def forward(self, x):
        y = self.conv(x)
        return y * self.p if self.training and self.p > 0.0 else y


class Inside(Block):
    def forward(self, x):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y = F.dropout(y, self.p) * 2.0
        return y + x


class Otherwise(Block):
    def forward(self, x):
        y = self.conv(x)
        return y * self.p if self.training and self.p > 0.0 else torch.tanh(y)


class Two(Block):
    def forward(self, x):
        y, z = self.conv(x), torch.tanh(x)
        if self.training and self.p > 0.0:
            y = y * self.p
        if self.training and self.r > 0.0:
            z = z + self.r
        return y + z


class Together(Block):
    """Only where both numbers are set; the first comparison alone changes nothing."""

    def forward(self, x):
        y = self.conv(x)
        return y * 2.0 if self.training and self.p > 0.0 and self.r > 0.0 else y


class Flags(Block):
    """The same, with both comparisons always asked."""

    def forward(self, x):
        y, p, r = self.conv(x), self.p > 0.0, self.r > 0.0
        return y * 2.0 if self.training and p and r else y


class Row(Block):
    """The second region reads what the first one may have changed."""

    def forward(self, x):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y = y * 3.0
        z = torch.relu(y)
        if self.training and self.r > 0.0:
            z = z + y
        return self.conv(z)


class Nested(Block):
    def forward(self, x):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y = y * 2.0 if self.r > 0.0 else y * 3.0
        return y


class Raises(Block):
    def forward(self, x):
        if self.p > 9.0:
            raise ValueError("too large")
        return self.conv(x)


class Overwrites(Block):
    def forward(self, x):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y.mul_(self.p)
        return y


class Selects(Block):
    """One of two values that are there in either case."""

    def forward(self, x):
        y = self.conv(x)
        z = torch.tanh(y)
        return self.conv(z if self.training and self.p > 0.0 else y)


class HandsOn(Block):
    """Its input itself, or something new."""

    def forward(self, x):
        return x * self.p if self.training and self.p > 0.0 else x


class ReadsInput(Block):
    """Its region reads what it is given, which another block may have changed."""

    def forward(self, x):
        y = self.conv(x)
        return self.conv(y * x if self.training and self.p > 0.0 else y)


class Outer(Block):
    """Another block inside, which asks for a number of its own."""

    def __init__(self):
        super().__init__()
        self.inner = Inside()

    def forward(self, x):
        y = self.inner(x)
        return self.conv(y) * self.p if self.training and self.p > 0.0 else self.conv(y)


KINDS = {
    kind.__name__: kind
    for kind in (
        *(AtTheEnd, Inside, Otherwise, Two, Together, Flags, Row, Nested),
        *(Raises, Overwrites, Selects, HandsOn, ReadsInput, Outer),
    )
}


@dataclass(frozen=True)
class Spec:
    """Which block each call goes to, what the blocks are, and the numbers from the start.

    A block is called again where its index comes twice; `glue` is a layer between the calls.
    """

    blocks: tuple[str, ...]
    calls: tuple[int, ...]
    start: tuple[float, ...]
    glue: bool

    def build(self):
        model = Chain(self)
        set_numbers(model, self.start)
        return model


class Chain(nn.Module):
    def __init__(self, spec):
        super().__init__()
        torch.manual_seed(0)
        self.calls = [i % len(spec.blocks) for i in spec.calls]
        self.blocks = nn.ModuleList([KINDS[kind]() for kind in spec.blocks])
        self.glue = nn.Conv2d(3, 3, 1) if spec.glue else None
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        for i in self.calls:
            x = self.blocks[i](x)
            x = x if self.glue is None else self.glue(x)
        return self.last(x)


def set_numbers(model, values):
    """Set p and r of every block, in order, from a cycle of values."""
    blocks = [module for module in model.modules() if hasattr(module, "r")]
    for i, block in enumerate(blocks):
        block.p, block.r = values[i % len(values)], values[(i + 1) % len(values)]


@st.composite
def specs(draw):
    blocks = tuple(draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4)))
    calls = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=5)))
    start = tuple(draw(st.lists(st.sampled_from((0.0, 0.5)), min_size=1, max_size=3)))
    return Spec(blocks, calls, start, draw(st.booleans()))


def one_by_one(base, texts):
    return [{text: ""} for text in texts]


def outcome(spec, examples):
    """The network, or None where it is refused."""
    try:
        return trace(spec.build(), (X,) if examples else None)
    except CaptureError:
        return None


def contents(gm):
    """How many nodes of each kind there are, in regions as well; names of sites have numbers."""
    kinds = Counter((n.op, str(n.target).rstrip("_0123456789")) for n in gm.graph.nodes)
    for module in gm.get_submodule(SITES).children() if hasattr(gm, SITES) else ():
        for body in getattr(module, "_body", ()):
            kinds += contents(body)
    return kinds


@settings(max_examples=60, deadline=None)
@given(specs(), st.booleans())
def test_together_is_as_one_by_one(spec, examples):
    """And both are as the model, whatever the numbers are set to."""
    together = outcome(spec, examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_groups", one_by_one)
        alone = outcome(spec, examples)
    assert (together is None) == (alone is None)
    if together is None:
        return
    assert contents(together) == contents(alone)
    model = spec.build()
    for values in ((0.0,), (0.5,), (0.0, 0.5), (0.5, 0.0), (0.25, 0.0, 0.0), (0.0, 0.75, 0.75)):
        for one in (together, model):
            set_numbers(one, values)
        assert list(largest_differences(together, model, (X,), (False, True))) == [0.0, 0.0]


REFUSED = ("Together", "Flags", "Row", "Nested")


@pytest.mark.parametrize("start", [(0.0,), (0.5,), (0.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_and_what_is_refused(kind, start):
    network = outcome(Spec((kind, "AtTheEnd"), (0, 1), start, glue=True), examples=False)
    assert (network is None) == (kind in REFUSED)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Together, r"asks gt\(blocks.0.r, 0.0\) in train\(\) only where another"),
        (Flags, r"together: gt\(blocks.0.p, 0.0\), gt\(blocks.0.r, 0.0\)"),
        (Row, r"together: gt\(blocks.0.p, 0.0\), gt\(blocks.0.r, 0.0\)"),
    ],
)
def test_comparisons_that_need_each_other_are_named(kind, words):
    with pytest.raises(CaptureError, match=rf"(?s){words}.*What to do"):
        trace(Spec((kind.__name__,), (0,), (0.0,), glue=True).build())


def test_a_region_that_reads_what_another_one_may_have_changed():
    """Kept with a layer between the two blocks; without, both regions would have to be known."""
    trace(nn.Sequential(AtTheEnd(), nn.Tanh(), ReadsInput()))
    with pytest.raises(CaptureError, match=r"together: gt\(0.p, 0.0\), gt\(1.p, 0.0\)"):
        trace(nn.Sequential(AtTheEnd(), ReadsInput()))


class Layer(Block):
    """As torchvision's DenseNet has it: reads all layers before it, in a list."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, features):
        y = self.conv(torch.relu(torch.cat(features, 1)))
        if self.p > 0:
            y = F.dropout(y, p=self.p, training=self.training)
        return y


class Dense(nn.Module):
    def __init__(self, layers, p):
        super().__init__()
        self.layers = nn.ModuleList([Layer(3 + 2 * i) for i in range(layers)])
        for layer in self.layers:
            layer.p = p
        self.last = nn.Conv2d(3 + 2 * layers, 2, 1)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return self.last(torch.cat(features, 1))


@pytest.fixture
def traces(monkeypatch):
    """A list that has an entry for each trace of a forward."""
    found, traced = [], Forward.traced
    monkeypatch.setattr(
        Forward, "traced", lambda *args, **kwargs: found.append(args) or traced(*args, **kwargs)
    )
    return found


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_twenty_layers_take_three_traces(p, examples, traces):
    """eval(), train(), and train() with every comparison inverted."""
    model = Dense(20, p)
    gm = trace(copy.deepcopy(model), (X,) if examples else None)
    assert len(traces) == 3
    for values in ((0.0,), (0.5, 0.0), (0.0, 0.0, 0.0, 0.25)):
        for one in (model, gm):
            set_numbers(one, values)
        assert list(largest_differences(gm, model, (X,), (False, True))) == [0.0, 0.0]


class Speaker(Block):
    """Leaves a note in a list where p is set: one that it is given, or one of its own."""

    def __init__(self, notes=None):
        super().__init__()
        self.notes = notes

    def forward(self, x, notes=None):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y = y * 2.0
            (self.notes if notes is None else notes).append("set")
        return y


class Listener(Block):
    """Does something else where there is a note."""

    def __init__(self, notes=None):
        super().__init__()
        self.notes = notes

    def forward(self, x, notes=None):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            y = y + 1.0
        y = self.conv(y)
        return y * 3.0 if (self.notes if notes is None else notes) else y


class Conversation(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.given, self.heard = given, []
        notes = () if given else (self.heard,)
        self.speaker, self.listener = Speaker(*notes), Listener(*notes)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.heard.clear()
        notes = ([],) if self.given else ()
        y = self.last(self.speaker(x, *notes))
        return self.last(self.listener(y, *notes))


@pytest.mark.parametrize("given", [True, False])
def test_calls_that_tell_each_other_more_are_traced_alone(given, traces):
    """The answer of the speaker changes what the listener does."""
    model = Conversation(given)
    gm = trace(copy.deepcopy(model))
    assert len(traces) == 5  # both modes, the two together, and each alone
    for values in ((0.0,), (0.5,), (0.0, 0.5), (0.5, 0.0)):
        for one in (gm, model):
            set_numbers(one, values)
        assert list(largest_differences(gm, model, (X,), (False, True))) == [0.0, 0.0]


class Gives(Block):
    """Where p is set its result looks otherwise, or is another object, or its argument does."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, known):
        y = self.conv(x)
        if self.training and self.p > 0.0:
            if self.how == "none":
                return None
            if self.how == "number":
                return y, 2
            if self.how == "object":
                return known[0]
            if self.how == "argument":
                known.append(y)
            if self.how == "shape":
                return y[:, :1]
        return y


class Steered(nn.Module):
    """What the first block gives steers which of two values the second one reads."""

    def __init__(self, how):
        super().__init__()
        self.gives, self.reads, self.last = Gives(how), AtTheEnd(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        a, b = self.last(x), torch.tanh(self.last(x))
        known = [self.last(b)]
        y = self.gives(a, known)
        steered = y is None or isinstance(y, tuple) or y is known[0] or len(known) > 1
        if self.gives.how == "shape":
            steered = y.shape[1] == 1
        return self.last(self.reads(a if steered else b))


@pytest.mark.parametrize("how", ["none", "number", "object", "argument", "shape"])
def test_what_a_call_gives_may_steer_others(how):
    """None where p is set, say: only a trace of p alone shows that it is p that steers."""
    model = Steered(how)
    gm = trace(copy.deepcopy(model), (X,))
    for values in ((0.0,), (0.5,), (0.0, 0.5), (0.5, 0.0)):
        for one in (gm, model):
            set_numbers(one, values)
        assert list(largest_differences(gm, model, (X,), (False, True))) == [0.0, 0.0]


def test_a_number_of_another_submodule():
    """A block that asks for its own number, and where that is set for its neighbour's."""

    class Curious(Block):
        def forward(self, x):
            y = self.conv(x)
            if self.training and self.p > 0.0:
                y = y * 2.0 if self.neighbour[0].p > 0.0 else y * 1.0
            return y

    model = nn.Sequential(AtTheEnd(), Curious())
    model[1].neighbour = [model[0]]
    with pytest.raises(CaptureError, match=r"(?s)together: gt\(0.p, 0.0\), gt\(1.p, 0.0\)"):
        trace(model)


def test_blocks_inside_blocks_take_a_trace_more(traces):
    """Both modes, the outer ones inverted, the inner ones, and all of them together."""
    trace(Spec(("Outer",) * 4, (0, 1, 2, 3), (0.0,), glue=True).build())
    assert len(traces) == 5


def test_statistics_that_run_for_some_values_only_are_refused():
    class Norms(Block):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return (self.one if self.training and self.p > 0.0 else self.two)(self.conv(x))

    with pytest.raises(CaptureError, match=r"(?s)keeps statistics.*What to do"):
        fxquant.prepare_qat(nn.Sequential(Norms(), nn.Conv2d(3, 3, 1)))
