"""The .tflite file: every operator, every rounding that LiteRT has, every value in its kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import Override, QuantConfig, QuantScheme
from fxquant.errors import ConfigError, ExportError, FileError, StageError, WriteError
from fxquant.ops import OPS, op_named
from tests import laws
from tests.export.networks import BY_ROWS, MOVES, Several
from tests.ops.test_laws import EXAMPLES, Call, quantized_example
from tests.strategies import NetSpec, net_specs

litert = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="LiteRT is in the extra `litert`"
)
schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="LiteRT is in the extra `litert`"
)

INT8 = QuantConfig(
    activation=QuantScheme(symmetric=False), rounding="gemmlowp", widen=False
)
UINT8 = QuantConfig(rounding="gemmlowp", widen=False)
ROUNDINGS = ("gemmlowp", "ruy", "fp32_rne")
NO_FORM = [op.name for op in OPS if op.tflite is None]
THREE_DIMENSIONS = ["conv3d", "conv_transpose3d", "max_pool3d"]
OTHERWISE = {
    ("conv2d", "ruy"), ("conv_transpose2d", "ruy"), ("add", "fp32_rne"),
    ("weighted_sum", "fp32_rne"),
}
"""Of groups and of three terms."""
WITH_FORM = [name for name in EXAMPLES if name not in (*NO_FORM, *THREE_DIMENSIONS)]


def is_equal(quantized, path, inputs, batch=None):
    """On the examples, and on inputs that are clipped."""
    fxquant.export_tflite(quantized, path, inputs, batch)
    far = [3 * x if x.is_floating_point() else x for x in inputs]
    found = fxquant.verify(quantized, path, [inputs, far])
    assert found.equal, str(found)
    assert found.engines == ("LiteRT",)
    return found


def converted(module, *inputs, config=INT8):
    prepared = fxquant.prepare_qat(module, inputs, config)
    laws.settle(prepared, *inputs)
    return fxquant.convert(prepared)


def operators_of(path):
    """The names of the file's operators, in order."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    graph = model.subgraphs[0]
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in graph.operators]


# ------------------------------------------------------------------------ operators


def is_equal_alone(name, config, path):
    """The input of the example of an embedding is its table, which is no batch."""
    _, inputs, _, quantized = quantized_example(name, 0, config)
    is_equal(quantized, path, inputs, len(inputs[0]) if name == "embedding" else None)


@pytest.mark.parametrize("name", WITH_FORM)
def test_every_operator(name, tmp_path):
    """Of codes of one type or the other, by turns."""
    is_equal_alone(name, (INT8, UINT8)[len(name) % 2], tmp_path / "net.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("config", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", WITH_FORM)
def test_every_operator_in_every_rounding(name, rounding, config, tmp_path):
    config, path = replace(config, rounding=rounding), tmp_path / "net.tflite"
    if (name, rounding) in OTHERWISE:
        with pytest.raises(ExportError, match="rounding="):
            is_equal_alone(name, config, path)
    else:
        is_equal_alone(name, config, path)


@pytest.mark.parametrize("name", [*NO_FORM, *THREE_DIMENSIONS])
def test_what_litert_cannot_compute_so_is_refused(name, tmp_path):
    _, inputs, _, quantized = quantized_example(name, 0, INT8)
    with pytest.raises(ExportError, match=r"node '\w+'[\s\S]*What to do"):
        fxquant.export_tflite(quantized, tmp_path / "net.tflite", inputs)
    assert not list(tmp_path.iterdir()), "a refusal leaves no file"


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("activation", [INT8.activation, UINT8.activation], ids=str)
def test_a_network_in_each_set_of_kernels(rounding, activation, tmp_path):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=2, dilation=2), nn.ReLU6(), nn.AvgPool2d(2),
        nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 10),
    )
    x = torch.randn(4, 3, 16, 16)
    config = replace(INT8, rounding=rounding, activation=activation)
    is_equal(converted(layers, x, config=config), tmp_path / "net.tflite", [x])


@st.composite
def convolutions(draw):
    """Groups, steps, paddings and dilations of all kinds."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    two = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, stride, dilation = draw(two), draw(two), draw(two)
    dilation = dilation if draw(st.booleans()) else (1, 1)
    padding = draw(st.one_of(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.just("same")))
    stride = (1, 1) if padding == "same" else stride
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    outputs = groups * draw(st.integers(1, 3))
    size = tuple(d * (k - 1) + draw(st.integers(1, 6))
                 for d, k in zip(dilation, kernel, strict=True))
    if mode != "zeros" and padding != "same":
        padding = tuple(min(p, n - 1) for p, n in zip(padding, size, strict=True))
    settings = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "padding_mode": mode, "bias": draw(st.booleans()),
    }
    return outputs, kernel, settings, size


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=20, deadline=None)
@given(drawn=convolutions(), wide=st.booleans(), per_channel=st.booleans(),
       power_of_two=st.booleans(), batch=st.integers(1, 3))
def test_convolutions(drawn, wide, per_channel, power_of_two, batch, tmp_path_factory):
    outputs, kernel, settings, size = drawn
    torch.manual_seed(0)
    x = torch.randn(batch, 4, *size)
    try:
        layer = nn.Conv2d(4, outputs, kernel, **settings)
        layer(x)
    except (RuntimeError, ValueError):
        assume(False)  # copies of more than there is
    config = replace(
        INT8, activation=(INT8 if wide else UINT8).activation,
        weight=QuantScheme(narrow=True, per_channel=per_channel, power_of_two=power_of_two),
    )
    network = nn.Sequential(layer, nn.ReLU6())
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    is_equal(converted(network, x, config=config), path, [x])


WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 1), ((2, 3), (1, 2), (0, 1)), (5, 2, 2)]


@pytest.mark.parametrize("config", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
def test_windows(kernel, stride, padding, config, tmp_path):
    """Odd and even pictures; padding that counts and that does not; a last window that is cut."""
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
    for size, ceil in (((7, 6), False), ((8, 9), True)):
        x = torch.randn(2, 3, *size)
        for pool in (nn.MaxPool2d(**settings, ceil_mode=ceil),
                     nn.AvgPool2d(**settings, ceil_mode=ceil, count_include_pad=False),
                     nn.AvgPool2d(**settings, ceil_mode=ceil),
                     nn.AvgPool2d(**settings, ceil_mode=ceil, divisor_override=40)):
            network = nn.Sequential(pool)
            is_equal(converted(network, x, config=config), tmp_path / "net.tflite", [x])


def test_means_of_windows_are_litert_s_own_where_they_are_ours(tmp_path):
    """Also at a stride of 2 over an even picture, where SAME begins one later: every other of those
    at a stride of 1.
    """
    x = torch.randn(2, 3, 8, 8)
    pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    is_equal(converted(nn.Sequential(pool), x), tmp_path / "net.tflite", [x])
    found = operators_of(tmp_path / "net.tflite")
    assert "AVERAGE_POOL_2D" in found
    assert "GATHER" not in found


@pytest.mark.parametrize("terms", [2, 3, 4, 7])
def test_sums_of_terms_with_scales_of_their_own(terms, tmp_path):
    """More than two are looked up and rounded once more, as LiteRT rounds two."""
    torch.manual_seed(terms)
    factors = torch.randn(terms).tolist()

    class Terms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(terms))
            self.factors = nn.Parameter(torch.tensor(factors))

        def forward(self, x):
            plain = sum(layer(x) for layer in self.layers)
            return plain, sum(w * layer(x) for w, layer in zip(
                self.factors, self.layers, strict=True))

    x = torch.randn(2, 3, 5, 6)
    is_equal(converted(Terms(), x), tmp_path / "net.tflite", [x])


# ------------------------------------------------------------------------ networks


@settings(max_examples=10, deadline=None)
@given(spec=net_specs(), batch=st.integers(1, 3), config=st.sampled_from([INT8, UINT8]))
def test_random_networks(spec: NetSpec, batch: int, config, tmp_path_factory):
    assume(all(step.kind not in ("softmax", "conv3d") for step in spec.steps))
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs(2), config)
    laws.settle(prepared, spec.inputs(4))
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    quantized = fxquant.convert(prepared)
    fxquant.export_tflite(quantized, path, spec.inputs(2))
    found = fxquant.verify(quantized, path, spec.inputs(batch, seed=7) * 2)
    assert found.equal, str(found)


FIXED_BATCH = {"flatten from the batch on", "batch behind"}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_elements(name, tmp_path):
    function = MOVES[name]
    x = torch.randn(2, 4, 7, 6)
    quantized = converted(nn.Sequential(Call(lambda x: function(torch.relu(x)))), x)
    is_equal(quantized, tmp_path / "net.tflite", [x], len(x) if name in FIXED_BATCH else None)


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_moves_elements_by_how_many_rows_there_are(name, tmp_path):
    x = torch.randn(8, 4, 7, 6)
    quantized = converted(nn.Sequential(Call(lambda x: BY_ROWS[name](torch.relu(x)))), x)
    with pytest.raises(ExportError, match=r"node '\w+'[\s\S]*What to do: fix.* batch=…"):
        fxquant.export_tflite(quantized, tmp_path / "net.tflite", x)
    is_equal(quantized, tmp_path / "net.tflite", [x], 8)


def test_dilated_windows(tmp_path):
    x = torch.randn(2, 3, 9, 8)
    pool = nn.MaxPool2d((3, 2), (2, 1), 1, dilation=(1, 3), ceil_mode=True)
    is_equal(converted(nn.Sequential(nn.Conv2d(3, 4, 1), pool), x), tmp_path / "net.tflite", [x])


def test_moves_between_convolutions_are_transposed_once(tmp_path):
    """Channels last from the first convolution to the last; what only permutes writes nothing."""
    x = torch.randn(2, 3, 9, 9)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(a) + a
            c = torch.cat([b[:, :, 1:], b[:, :, 1:].flip(3)], 1)
            return c.permute(0, 2, 3, 1)

    is_equal(converted(Net(), x), tmp_path / "net.tflite", [x])
    assert operators_of(tmp_path / "net.tflite").count("TRANSPOSE") == 1


def test_names_a_signature_and_a_batch_of_any_size(tmp_path):
    inputs = [torch.randn(2, 3, 4), torch.randint(0, 9, (2, 3))]
    quantized, path = converted(Several(), *inputs), tmp_path / "net.tflite"
    fxquant.export_tflite(quantized, path, inputs)
    larger = [torch.randn(5, 3, 4), torch.randint(0, 9, (5, 3))]
    assert fxquant.verify(quantized, path, [larger]).equal
    runner = litert.Interpreter(
        str(path), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF
    )
    signature = runner.get_signature_list()["serving_default"]
    assert sorted(signature["inputs"]) == ["i", "x"]
    assert len(signature["outputs"]) == 3
    shapes = {d["name"]: d["shape_signature"].tolist() for d in runner.get_input_details()}
    assert shapes == {"x": [-1, 3, 4], "i": [-1, 3]}
    one, other = (quantized(*inputs)[key] for key in "ab")
    found = runner.get_signature_runner("serving_default")(
        **{name: value.numpy() for name, value in zip("xi", inputs, strict=True)}
    )
    ours = [one[0], *other]
    assert sorted(x.sum() for x in found.values()) == sorted(x.numpy().sum() for x in ours)


def test_one_weight_in_two_places(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    x = torch.randn(2, 4, 5, 5)
    is_equal(converted(Tied(), x), tmp_path / "net.tflite", [x])


def test_verify_says_where_and_by_how_much(tmp_path):
    """The bias of the first convolution is another one in the network than in the file."""
    x, path = torch.randn(2, 4, 7, 6), tmp_path / "net.tflite"
    layers = nn.Sequential(nn.Conv2d(4, 40, 3), nn.ReLU(), nn.Conv2d(40, 2, 1))
    quantized = converted(layers, x)
    fxquant.export_tflite(quantized, path, x)
    first = next(n.name for n in quantized.graph.nodes if "0" in n.name and n.op == "call_module")
    quantized.get_submodule(f"fxquant.{first}").bias += 2000
    found = fxquant.verify(quantized, path, x)
    assert found.partings[0].node == first
    assert f"'{first}' (LiteRT)" in str(found)
    with pytest.raises(ConfigError, match="engines for this file are of 'LiteRT'"):
        fxquant.verify(quantized, path, x, ["onnxruntime"])


# ------------------------------------------------------------------------ refusals


def test_refusals(tmp_path):
    x, path = torch.randn(2, 4, 7, 6), tmp_path / "net.tflite"
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU())
    with pytest.raises(StageError, match="integer network"):
        fxquant.export_tflite(layers, path, x)
    for config, why in (
        (QuantConfig(), r"rounds as half_up[\s\S]*preset\('litert'\)"),
        (replace(INT8, keep_float=("1",)), "without keep_float"),
        (replace(INT8, activation=QuantScheme(bits=16, symmetric=False)), "more than 8 bits"),
        (replace(INT8, overrides=(Override(path="0", weight=12),)), "more than 8 bits"),
    ):
        with pytest.raises(ExportError, match=why):
            fxquant.export_tflite(converted(layers, x, config=config), path, x)
    doubled = converted(nn.Sequential(nn.Conv2d(4, 4, 1)).double(), x.double())
    with pytest.raises(ExportError, match=r"model\.float\(\)"):
        fxquant.export_tflite(doubled, path, x.double())
    with pytest.raises(ConfigError, match=r"\.tflite"):
        fxquant.export_tflite(converted(layers, x), tmp_path / "net.onnx", x)
    with pytest.raises(WriteError, match="net.tflite"):
        fxquant.export_tflite(converted(layers, x), tmp_path / "none" / "net.tflite", x)
    assert not list(tmp_path.iterdir()), "a refusal leaves no file"


def test_sums_that_would_leave_32_bits_are_refused(tmp_path):
    """LiteRT shifts a sum to the left where its scale is coarser than that of the output."""
    x = torch.randn(2, 64, 3, 3)
    quantized = converted(nn.Sequential(nn.Conv2d(64, 4, 3)), x)
    site = next(m for m in quantized.modules() if getattr(m, "op", None) is op_named("conv2d"))
    site.shift -= 24
    with pytest.raises(ExportError, match=r"node '_0' has outputs on a much finer scale"):
        fxquant.export_tflite(quantized, tmp_path / "net.tflite", x)


def test_a_file_that_is_not_one_of_ours(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"\x00" * 4 + b"TFL3" + b"\x00" * 64)
    x = torch.randn(2, 4, 7, 6)
    with pytest.raises(FileError, match="export_tflite did not write it"):
        fxquant.verify(converted(nn.Sequential(nn.Conv2d(4, 4, 1)), x), path, x)


def test_activations_fused_into_a_layer(tmp_path):
    """Symmetric codes have as many below zero as above, so that a ReLU is a clamp of its own."""
    x = torch.randn(2, 4, 7, 6)
    config = replace(INT8, activation=QuantScheme(narrow=True))
    last = nn.Hardtanh(-0.5, 0.25)
    for activation in (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), last):
        network = nn.Sequential(nn.Conv2d(4, 8, 3), activation)
        is_equal(converted(network, x, config=config), tmp_path / "net.tflite", [x])
        found = operators_of(tmp_path / "net.tflite")
        limits = {"MAXIMUM", "MINIMUM"} & set(found[found.index("CONV_2D"):])
        assert bool(limits) is (activation is last), "only the last is none of LiteRT's own"


def test_means_over_dimensions(tmp_path):
    x = torch.randn(2, 4, 7, 6)
    for function in (lambda x: x.mean((2, 3)), lambda x: x.mean(1, keepdim=True),
                     lambda x: x.sum((1, 3)), lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
                     lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.interpolate(x, (9, 5))):
        quantized = converted(nn.Sequential(nn.Conv2d(4, 4, 1), Call(function)), x)
        is_equal(quantized, tmp_path / "net.tflite", [x])
    of_all = converted(nn.Sequential(Call(lambda x: x.mean())), x)
    is_equal(of_all, tmp_path / "net.tflite", [x], len(x))
    with pytest.raises(ExportError, match="how many rows"):
        is_equal(of_all, tmp_path / "net.tflite", [x])
