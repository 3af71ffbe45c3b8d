"""torch.compile: one graph in every mode, and in each the same bits as without it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.darts import DARTS_V2, Cell, NetworkCIFAR, SearchNetwork
from fxquant.intmath import LayerNumbers
from fxquant.ops.layer import layer_kernel
from fxquant.ops.matmul import MATMUL, MatmulNumbers
from fxquant.rounding import HALF_UP
from tests import laws
from tests.test_reference import CONFIGS, LARGE, SMALL, case

# of torch's own compiler, in torch 2.13
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.Sequential(layer, nn.Linear(16, 4))


class OneCell(nn.Module):
    """A cell of DARTS_V2, which reads one tensor twice."""

    def __init__(self):
        super().__init__()
        self.cell = Cell(DARTS_V2, 4, 4, 4, reduction=False, reduction_prev=False)

    def forward(self, x):
        return self.cell(x, x)


PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
NETWORKS = {
    "convolutions": (convolutions, (4, 3, 12, 12)),
    "transformer": (transformer, (2, 5, 16)),
    "cell": (OneCell, (2, 4, 8, 8)),
    "network": (lambda: NetworkCIFAR(4, 10, 3, DARTS_V2), (2, 3, 16, 16)),
    "search network": (
        lambda: SearchNetwork(4, 10, 3, nodes=2, primitives=PRIMITIVES), (2, 3, 8, 8),
    ),
}
QUICK = ("convolutions", "transformer")


def slow_but(names, quick):
    """Each name; all but the quick ones wait for --slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def prepared_of(name, config=None):
    """A network that has seen one batch, and another batch."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = make(), torch.randn(shape)
    prepared = fxquant.prepare_qat(net, x, config or QuantConfig()).train()
    prepared(x)
    return prepared, 0.5 * x


def compiled(network, backend="eager", **options):
    """In one graph: a break is an error."""
    torch._dynamo.reset()
    return torch.compile(network, fullgraph=True, backend=backend, **options)


# ------------------------------------------------------------------------ train()


@pytest.mark.parametrize("name", slow_but(NETWORKS, QUICK))
def test_training(name):
    """The same values and the same gradients."""
    prepared, x = prepared_of(name)
    twin = copy.deepcopy(prepared)
    outputs = [model(x) for model in (compiled(prepared), twin)]
    a, b = (laws.flat(y)[0] for y in outputs)
    assert torch.equal(a, b)
    for y in (a, b):
        y.square().sum().backward()
    for one, other in zip(prepared.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.slow
def test_training_by_inductor():
    """Floats are added up in another order."""
    prepared, x = prepared_of("convolutions")
    twin = copy.deepcopy(prepared)
    a, b = compiled(prepared, "inductor")(x), twin(x)
    torch.testing.assert_close(a, b)
    for y in (a, b):
        y.square().sum().backward()
    for one, other in zip(prepared.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# ------------------------------------------------------------------------ eval()


@pytest.mark.parametrize("name", slow_but(NETWORKS, (*QUICK, "cell")))
def test_eval_and_convert(name):
    """What is validated is what is shipped, compiled or not."""
    prepared, x = prepared_of(name)
    quantized = fxquant.convert(prepared.eval())
    with torch.no_grad():
        expected = prepared(x)
        for network in (prepared, quantized):
            laws.assert_equal(compiled(network)(x), expected)


@pytest.mark.parametrize("name", slow_but(SMALL | LARGE, ("convs_1d", "resized_1d", "constants")))
def test_eval_of_every_operator(name):
    prepared, x = case(name, "default").prepared, case(name, "default").inputs(2)
    with torch.no_grad():
        laws.assert_equal(compiled(prepared, "aot_eager")(x), prepared(x))


@pytest.mark.slow
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "default"])
@pytest.mark.parametrize("name", ["convs", "functions", "attention"])
def test_eval_of_every_config(name, config):
    prepared, x = case(name, config).prepared, case(name, config).inputs(2)
    with torch.no_grad():
        laws.assert_equal(compiled(prepared)(x), prepared(x))


@pytest.mark.slow
@pytest.mark.parametrize("fake_quant", [fxquant.LSQ(), fxquant.PACT(), fxquant.TQT()])
def test_eval_of_learned_grids(fake_quant):
    prepared, x = prepared_of("convolutions", QuantConfig(fake_quant=fake_quant))
    prepared.eval()
    laws.assert_equal(compiled(prepared)(x), prepared(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_eval_by_inductor(name):
    prepared, x = prepared_of(name)
    prepared.eval()
    with torch.no_grad():
        laws.assert_equal(compiled(prepared, "inductor")(x), prepared(x))


def test_any_batch():
    prepared, x = prepared_of("convolutions")
    prepared.eval()
    network = compiled(prepared, dynamic=True)
    for batch in (4, 3, 2):
        assert torch.equal(network(x[:batch]), prepared(x[:batch]))


# ------------------------------------------------------------------------ whether there are ranges


def test_before_any_data_it_is_the_float_network_then_no_more():
    """Compiled first, trained then: what was compiled without ranges does not outlive them."""
    x = torch.randn(4, 6)
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), x)
    network = compiled(prepared)
    without = network.eval()(x)
    assert torch.equal(without, prepared(x))
    network.train()(x)
    within = network.eval()(x)
    assert torch.equal(within, prepared(x))
    assert not torch.equal(within, without)


@pytest.mark.parametrize("give", ["state_dict", "calibrate", "file"])
def test_ranges_that_come_while_it_is_in_eval(give, tmp_path):
    """load_state_dict, calibrate and load_statistics say so to what is compiled, too."""
    x = torch.randn(4, 6)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    prepared, other = (fxquant.prepare_qat(net, x) for _ in range(2))
    other.train()(x)
    prepared.eval()
    network = compiled(prepared)
    network(x)
    if give == "state_dict":
        prepared.load_state_dict(other.state_dict())
    elif give == "calibrate":
        fxquant.calibrate(prepared, [x])
    else:
        fxquant.save_statistics(other, tmp_path / "ranges.yaml")
        fxquant.load_statistics(prepared, tmp_path / "ranges.yaml")
    expected = fxquant.convert(copy.deepcopy(prepared))(x)
    assert torch.equal(network(x), expected)


# ------------------------------------------------------------------------ sums that nobody asks


def test_sums_beyond_float32_are_exact():
    """601·127·255 = 19,463,385: odd, and float32 has only even numbers there."""
    weight = torch.full((1, 601), 127, dtype=torch.int8)
    codes = torch.full((2, 601), 255, dtype=torch.uint8)
    n = LayerNumbers(
        weight=weight,
        bias=torch.zeros(1, dtype=torch.int32),
        bound=torch.tensor([601 * 127 * 255]),
        multiplier=torch.ones(1, dtype=torch.int64),
        shift=torch.zeros(1, dtype=torch.int64),
        x_zero=torch.tensor(0, dtype=torch.int32),
        y_zero=torch.tensor(0, dtype=torch.int32),
        low=torch.tensor(-(2**30)),
        high=torch.tensor(2**30),
        rounding=HALF_UP,
    )
    kernel = layer_kernel(F.linear, 0)
    found = compiled(lambda codes: kernel(n, torch.int64, codes))(codes)
    assert found.tolist() == [[601 * 127 * 255]] * 2


def test_products_beyond_float32_are_exact():
    """301·255·255 = 19,572,525: odd, too."""
    zero = torch.tensor(0, dtype=torch.int32)
    n = MatmulNumbers(
        multiplier=torch.tensor(1),
        shift=torch.tensor(0),
        bound=torch.tensor(255 * 255),
        a_zero=zero,
        b_zero=zero,
        y_zero=zero,
        low=torch.tensor(-(2**30)),
        high=torch.tensor(2**30),
        accumulator_bits=torch.tensor(32, dtype=torch.int32),
        rounding=HALF_UP,
    )
    a = torch.full((2, 301), 255, dtype=torch.uint8)
    found = compiled(lambda a, b: MATMUL.kernel(n, torch.int64, a, b))(a, a.t())
    assert found.tolist() == [[301 * 255 * 255] * 2] * 2


class Outer(nn.Module):
    def forward(self, x):
        return x @ x.transpose(0, 1)


def test_products_that_may_leave_their_accumulator_are_refused():
    """By a node of the graph, which asks no tensor."""
    prepared = fxquant.prepare_qat(Outer())
    x = torch.rand(2, 40_000)
    laws.settle(prepared, x)
    torch._dynamo.reset()
    # with fullgraph torch.fx, which looks where the error came from, hides it behind another
    run = torch.compile(prepared, backend="aot_eager", dynamic=True)
    assert torch.equal(run(x[:, :50]), prepared(x[:, :50]))
    with pytest.raises(RuntimeError, match="(?s)a matrix product sums .*What to do"):
        run(x)
