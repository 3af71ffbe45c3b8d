"""Edge cases 1 to 12: what a capture must not lose."""

import copy
import operator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import darts
from fxquant.sites.flow import sites
from tests import laws
from tests.edge_cases.checks import IMAGE, Net, conv, kept, refused, run, settle_norms

INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))


def names_of(result, part):
    return [node.name for node, _ in sites(result.prepared) if part in node.name]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("layer", [conv(), conv(groups=4), nn.Linear(8, 8)], ids=str)
def test_case_01_module_called_n_times(layer, n):
    """Kept: each call has quantizers of its own, over one weight."""

    def forward(s, x):
        for _ in range(n):
            x = s.layer(x).relu()
        return s.last(x)

    results = kept(Net(forward, layer=layer, last=conv()), INPUT)
    assert len(names_of(results["train"], "layer")) == n


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm between"])
def test_case_02_two_modules_one_tensor(norm):
    """Kept: the weight stays one tensor under both of its names, and trains as one."""
    model = Net(
        lambda s, x: s.b(s.bn(s.a(x)) if norm else s.a(x)), a=conv(), b=conv(), bn=nn.BatchNorm2d(4)
    )
    model.b.weight = model.a.weight
    for prepared, _ in kept(model, INPUT).values():
        assert prepared.a.weight is prepared.b.weight
        assert {"a.weight", "b.weight"} < prepared.state_dict().keys()
        prepared.train()(INPUT).square().sum().backward()
        assert prepared.a.weight.grad.abs().sum() > 0


def test_case_02_two_names_of_one_module():
    """Kept: a module with two names keeps both."""
    model = Net(lambda s, x: s.b(s.a(x).relu()), a=conv())
    model.b = model.a
    for prepared, _ in kept(model, INPUT).values():
        assert prepared.a is prepared.b
        assert {"a.weight", "b.weight"} < prepared.state_dict().keys()


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Dropout(0.5)], ids=str)
def test_case_03_stateless_module_reused(layer):
    """Kept: a module without parameters follows the range of whatever it reads at each place."""
    model = Net(lambda s, x: s.same(s.b(s.same(s.a(s.same(x))))), same=layer, a=conv(), b=conv())
    results = kept(model, INPUT)
    quantizers = {id(site.quantizer) for _, site in sites(results["train"].prepared)}
    assert len(quantizers) == (2 if isinstance(layer, nn.Dropout) else 3)


def weighted(s, x):
    """As search code of DARTS has it; every alpha stands in the list that arch_parameters() is."""
    (alpha,) = s.architecture
    return sum(w * op(x) for w, op in zip(F.softmax(alpha, -1), s.ops, strict=True))


def with_alphas(forward, alpha, **members):
    """Two operations, and `alpha`: a plain tensor, or a Parameter, also in a list of its own."""
    model = Net(forward, ops=nn.ModuleList([conv(), conv(groups=2)]), **members)
    model.alpha, model.architecture = alpha, [alpha]
    return model


@pytest.mark.parametrize("example", [False, True], ids=["no example", "example"])
def test_case_04_plain_tensors_that_are_searched(example):
    """Kept: plain tensors with gradients stay live, and are in the state_dict."""
    model = with_alphas(weighted, torch.randn(2, requires_grad=True))
    for name, (prepared, quantized) in kept(model, INPUT, example=example).items():
        assert prepared.alpha is prepared.architecture[0]
        assert dict(prepared.named_parameters()).keys() <= dict(model.named_parameters()).keys()
        prepared.train()(INPUT).square().sum().backward()
        assert prepared.alpha.grad.abs().sum() > 0
        fresh = fxquant.prepare_qat(model, config=laws.CONFIGS[name]).eval()
        with torch.no_grad():
            prepared.alpha.copy_(torch.tensor([3.0, -3.0]))
        fresh.load_state_dict(prepared.state_dict())
        assert torch.equal(fresh.alpha, prepared.alpha)
        laws.assert_equal(fresh(INPUT), prepared.eval()(INPUT))
        laws.assert_equal(fxquant.convert(prepared)(INPUT), prepared(INPUT))
        assert not torch.equal(prepared(INPUT), quantized(INPUT))


def test_case_04_the_users_tensor():
    """Kept: the model's own tensor stays a plain attribute, and what trains is a copy of it."""
    alpha = torch.randn(2, requires_grad=True)
    model = with_alphas(weighted, alpha)
    prepared = fxquant.prepare_qat(model)
    prepared(INPUT).sum().backward()
    assert vars(model)["alpha"] is model.architecture[0] is alpha
    assert alpha.grad is None
    assert torch.equal(prepared.alpha, alpha)


def test_case_04_constants():
    """Kept: a plain tensor without gradients can be set, and stays out of the state_dict."""
    model = Net(lambda s, x: s.a(x) * s.mask, a=conv())
    model.mask = torch.tensor([1.0, 0.0, 2.0, 1.0]).reshape(4, 1, 1)
    for prepared, _ in kept(model, INPUT).values():
        assert "mask" not in prepared.state_dict()
        before = prepared(INPUT)
        prepared.mask = torch.zeros(4, 1, 1)
        assert not torch.equal(prepared(INPUT), before)
        laws.assert_equal(fxquant.convert(prepared)(INPUT), prepared(INPUT))


SUMS = {
    "of calls": lambda s, x: sum(op(x) for op in s.ops),
    "of one call": lambda s, x: sum(op(x) for op in s.ops[:1]),
    "over a ParameterList": lambda s, x: sum(F.conv2d(x, w) for w in s.weights),
    "zip of two lists": lambda s, x: sum(
        op(F.conv2d(x, w)) for w, op in zip(s.weights, s.ops, strict=True)
    ),
    "zip of a tensor's parts": lambda s, x: sum(op(v) for v, op in zip(x, s.ops, strict=True)),
}


@pytest.mark.parametrize("forward", SUMS.values(), ids=SUMS)
def test_case_05_sum_over_a_generator(forward):
    """Kept: the integer 0 that `sum()` starts from disappears, and the rest is one sum."""
    weights = nn.ParameterList([torch.randn(4, 4, 1, 1) for _ in range(2)])
    model = Net(forward, ops=nn.ModuleList([conv(), conv(groups=2)]), weights=weights)
    results = kept(model, INPUT, example=forward is SUMS["zip of a tensor's parts"])
    assert len(names_of(results["train"], "add")) <= 1


WEIGHTED = {
    "by index": lambda s, x: sum(F.softmax(s.alpha, -1)[i] * op(x) for i, op in enumerate(s.ops)),
    "zip of a tensor and a list": lambda s, x: sum(
        w * op(x) for w, op in zip(F.softmax(s.alpha, -1), s.ops, strict=True)
    ),
    "zip of alphas and a list": lambda s, x: sum(
        w * op(x) for w, op in zip(s.alpha, s.ops, strict=True)
    ),
    "over alphas alone": lambda s, x: sum(w * x for w in s.alpha),
    "alphas unpacked": lambda s, x: operator.add(*(w * s.ops[0](x) for w in s.alpha)),
    "rows of alphas": lambda s, x: sum(w[1] * op(x) for w, op in zip(s.rows, s.ops, strict=True)),
}


@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor.requires_grad_], ids=["P", "tensor"])
@pytest.mark.parametrize("forward", WEIGHTED.values(), ids=WEIGHTED)
def test_case_05_sum_over_a_generator_with_alphas(forward, kind):
    """Kept: how many alphas there are is known, and the sum of the products is one sum."""
    model = with_alphas(forward, kind(torch.randn(2)), rows=nn.Parameter(torch.randn(2, 3)))
    results = kept(model, INPUT)
    assert len(names_of(results["train"], "add")) == 1
    for prepared, _ in results.values():
        alpha = prepared.rows if forward is WEIGHTED["rows of alphas"] else prepared.alpha
        prepared.train()(INPUT).square().sum().backward()
        assert alpha.grad.abs().sum() > 0


def test_case_05_loop_over_a_tensor_of_unknown_length():
    """Refused: how often a loop over a tensor runs is only known with example inputs."""

    def forward(s, x):
        parts = zip(x, s.ops, strict=True)
        return sum(op(part) for part, op in parts)

    model = Net(forward, ops=nn.ModuleList([conv(), conv()]))
    refused(model, INPUT, "pass example_inputs", module="", line="zip(x, s.ops, strict=True)")


class Cell(nn.Module):
    """Drop path as search code writes it, and as a module whose rate the script sets later."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = conv(), conv(), darts.operations.DropPath(0.3)

    def forward(self, x):
        y = self.drop(self.a(x))
        if self.training:
            y = y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(0.5) / 0.5
        return y + self.b(x)


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.cell = nn.Sequential(conv(), nn.BatchNorm2d(4)), Cell()
        self.aux = nn.Sequential(nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))
        self.head = nn.Linear(256, 3)

    def forward(self, x):
        y = self.cell(self.stem(x))
        aux = self.aux(y) if self.training else None
        return self.head(y.flatten(1)), aux


def test_case_06_branches_on_the_mode():
    """Kept: drop path, dropout and auxiliary heads go on doing in training what they did."""
    for prepared, quantized in kept(settle_norms(WithHead()), INPUT).values():
        assert prepared.train()(INPUT)[1].shape == (2, 3)
        assert prepared.eval()(INPUT)[1] is None
        assert not any("aux" in name for name in quantized.state_dict())


def test_case_06_rate_of_a_drop_path_module_set_later():
    """Kept: a training script may go on setting the rate of a drop path module."""
    model = settle_norms(WithHead())
    for prepared, _ in kept(model, INPUT).values():
        model.cell.drop.p = prepared.cell.drop.p = 0.9
        ours, theirs = (run(m, (INPUT,), training=True)[0][0] for m in (prepared, model))
        assert (ours == 0).float().mean() == (theirs == 0).float().mean()


SPELLINGS = {
    "F.conv2d": lambda s, x: F.conv2d(x, s.a.weight, s.a.bias, padding=1),
    "torch.conv2d": lambda s, x: torch.conv2d(x, s.a.weight, padding="same"),
    "F.linear": lambda s, x: F.linear(x, s.matrix),
    "F.relu": lambda s, x: F.relu(s.a(x)),
    "F.relu in place": lambda s, x: F.relu(s.a(x), inplace=True),
    "torch.relu_": lambda s, x: torch.relu_(s.a(x)),
    "method relu": lambda s, x: s.a(x).relu(),
    "method clamp": lambda s, x: s.a(x).clamp(min=0),
    "method clamp_": lambda s, x: s.a(x).clamp_(-1, 1),
    "F.relu6": lambda s, x: F.relu6(s.a(x)),
    "F.hardtanh": lambda s, x: F.hardtanh(s.a(x), -2, 1),
    "F.max_pool2d": lambda s, x: F.max_pool2d(s.a(x), 3, stride=1, padding=1),
    "torch.max_pool2d": lambda s, x: torch.max_pool2d(s.a(x), 2),
    "F.avg_pool2d": lambda s, x: F.avg_pool2d(s.a(x), 2),
    "F.adaptive_avg_pool2d": lambda s, x: F.adaptive_avg_pool2d(s.a(x), 1),
    "method mean": lambda s, x: s.a(x).mean((2, 3)),
    "torch.mean": lambda s, x: torch.mean(s.a(x), dim=[2, 3], keepdim=True),
    "+": lambda s, x: s.a(x) + x,
    "+=": lambda s, x: operator.iadd(s.a(x), x),
    "torch.add": lambda s, x: torch.add(s.a(x), x),
    "method add_": lambda s, x: s.a(x).add_(x),
    "torch.cat": lambda s, x: torch.cat((s.a(x), x), dim=1),
    "torch.concat": lambda s, x: torch.concat([s.a(x), x], 1),
    "* 0.0": lambda s, x: s.a(x) + x * 0.0,
    "method mul": lambda s, x: s.a(x) + x.mul(0.0),
    "F.pad": lambda s, x: F.pad(s.a(x), (1, 1, 0, 2)),
    "torch.flatten": lambda s, x: torch.flatten(s.a(x), 1),
    "method view": lambda s, x: s.a(x).view(x.size(0), -1),
    "F.dropout": lambda s, x: F.dropout(s.a(x), 0.5, s.training),
}


@pytest.mark.parametrize("forward", SPELLINGS.values(), ids=SPELLINGS)
def test_case_07_spellings(forward):
    """Kept: each spelling is known."""
    kept(Net(forward, a=conv(), matrix=nn.Parameter(torch.randn(5, 8))), INPUT)


def test_case_07_batch_norm_as_a_function():
    """Kept: a batch norm that is called as a function, with statistics that no mode changes."""

    def forward(s, x):
        bn = s.bn
        return F.batch_norm(s.a(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)

    kept(Net(forward, a=conv(), bn=nn.BatchNorm2d(4)), INPUT)


def test_case_07_batch_norm_of_each_batch_as_a_function():
    """Refused: a batch norm that is called as a function, with the statistics of each batch."""
    model = Net(lambda s, x: F.batch_norm(s.a(x), None, None, training=True), a=conv())
    words = "it normalises each batch by itself"
    refused(model, INPUT, words, node="batch_norm", module="", line="F.batch_norm(")


OUTPUTS = {
    "keyword argument inside": lambda s, x: s.a(input=x),
    "dict": lambda s, x: {"y": s.a(x), "x": x},
    "tuple": lambda s, x: (s.a(x), s.b(x)),
    "list": lambda s, x: [s.a(x), s.b(x).relu()],
    "None": lambda s, x: (s.a(x), None),
    "nested": lambda s, x: {"a": (s.a(x), [None, {"b": s.b(x)}]), "parts": s.a(x).chunk(2, 1)},
    "an input handed through": lambda s, x: (s.a(x), x),
    "one value twice": lambda s, x: (y := s.a(x), y.flatten(1), y),
}


@pytest.mark.parametrize("forward", OUTPUTS.values(), ids=OUTPUTS)
def test_case_08_outputs(forward):
    """Kept: outputs have the structure that the model gives them."""
    model = Net(forward, a=conv(), b=conv())
    for prepared, quantized in kept(model, INPUT).values():
        expected = model(INPUT)
        for outputs in (prepared(INPUT), quantized(INPUT)):
            assert type(outputs) is type(expected)
            assert not isinstance(outputs, dict) or outputs.keys() == expected.keys()


def test_case_08_keyword_arguments_of_the_model():
    """Kept: arguments keep their names, and their defaults where no example is given."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv()

        def forward(self, x, other, mask=None):
            return self.a(x) + other if mask is None else self.a(x) * mask

    other = torch.randn(IMAGE)
    for prepared, quantized in kept(Two(), (INPUT, other)).values():
        laws.assert_equal(quantized(other=other, x=INPUT), prepared(x=INPUT, other=other))


@pytest.fixture(scope="module")
def _process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "OptimizedModule": lambda m: torch.compile(m, backend="eager"),
}


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("name", WRAPPERS)
def test_case_09_wrappers(name):
    """Kept: wrappers around the model are taken off, and the log says so."""
    model = Net(lambda s, x: s.a(x).relu(), a=conv())
    prepared = fxquant.prepare_qat(WRAPPERS[name](model))
    assert set(model.state_dict()) < set(prepared.state_dict())
    laws.assert_equal(prepared.eval()(INPUT), model.eval()(INPUT))
    assert f"taken out of {name}" in fxquant.explain(prepared)
    laws.settle(prepared, INPUT)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(INPUT), prepared(INPUT))
    assert "taken out of" in fxquant.explain(quantized)
    assert "taken out of" not in fxquant.explain(fxquant.prepare_qat(model))


def test_case_10_names():
    """Kept: user attributes, submodule paths and the names of the state_dict."""

    def build():
        model = settle_norms(WithHead())
        model.note, model.genotype = "mine", darts.DARTS_V2
        model.register_buffer("seen", torch.tensor(3), persistent=False)
        return model

    model = build()
    results = kept(model, INPUT)
    for name, (prepared, _) in results.items():
        assert {name for name, _ in model.named_modules()} < {
            name for name, _ in prepared.named_modules()
        }
        assert (prepared.note, prepared.genotype) == ("mine", darts.DARTS_V2)
        assert int(prepared.seen) == 3
        assert "seen" not in prepared.state_dict()
        assert type(prepared.get_submodule("cell.a")) is nn.Conv2d
        assert type(prepared).__name__ == "WithHead"
        own = {key for key in prepared.state_dict() if not key.startswith("fxquant.")}
        folded = {key for key in model.state_dict() if key.startswith("stem.1.")}
        assert own == set(model.state_dict()) - (folded if name in ("fold", "equalize") else set())
    results["train"].prepared.load_state_dict(build().state_dict(), strict=False)


@pytest.mark.parametrize("name", ["2<-0", "conv 1", "größe", "a-b", "0", "weight", "x", "forward_"])
def test_case_11_odd_names(name):
    """Kept, and refused where torch.fx cannot write code for a name: odd characters stay."""
    model = nn.Module()
    model.add_module(name, conv())
    model = Net(lambda s, x: s.m[name](x) + getattr(s.inner, name)(x), m=nn.ModuleDict(
        {name: conv(), "1<-0": conv()}), inner=model)
    for prepared, _ in kept(model, INPUT).values():
        assert {f"m.{name}.weight", f"inner.{name}.bias"} < prepared.state_dict().keys()


@pytest.mark.parametrize("name", ["class", "self", 'a"b', "graph", "fxquant"])
def test_case_11_names_that_code_cannot_hold(name):
    """Refused: a member called like a keyword, with quotes, or like one of torch.fx's own."""
    model = nn.Sequential()
    model.add_module(name, conv())
    refused(model, INPUT, "rename it", module=name, line=None)


def test_case_12_users_model():
    """Kept: the user's model is what it was: parameters, statistics, modes, flags, hooks."""
    model = settle_norms(WithHead())
    model.cell.act = nn.ReLU(inplace=True)
    model.cell.register_forward_hook(lambda m, args, y: m.act(y))
    model.train()
    model.stem[1].eval()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = copy.deepcopy(model.state_dict())
    modes = {name: m.training for name, m in model.named_modules()}
    held = {name: set(vars(m)) for name, m in model.named_modules()}
    text = repr(model)
    for config in laws.CONFIGS.values():
        prepared = fxquant.prepare_qat(model, INPUT, config)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        prepared.train()(INPUT)[0].sum().backward()
        optimizer.step()
        fxquant.convert(prepared)(INPUT)
        after = dict(model.named_parameters()) | dict(model.named_buffers())
        assert all(after[name] is tensor for name, tensor in tensors.items())
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert modes == {name: m.training for name, m in model.named_modules()}
        assert held == {name: set(vars(m)) for name, m in model.named_modules()}
        assert repr(model) == text
        assert model.cell.act.inplace
        assert len(model.cell._forward_hooks) == 1
