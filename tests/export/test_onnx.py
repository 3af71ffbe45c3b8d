"""ONNX in integer operators: every operator, every rounding, every value in onnxruntime."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.errors import ConfigError, DataError, ExportError, FileError, StageError, WriteError
from fxquant.ops import OPS
from fxquant.rounding import ROUNDINGS
from tests import laws
from tests.export.networks import BY_ROWS, MOVES, NO_FORM, OF_ROWS, Several
from tests.ops.test_laws import EXAMPLES, Call, quantized_example
from tests.strategies import NetSpec, net_specs

onnx = pytest.importorskip("onnx", reason="onnx is in the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")

WIDE = QuantConfig(activation=QuantScheme(bits=16, symmetric=False))
SIGNED = QuantConfig(activation=QuantScheme(symmetric=False))


ORT = ("onnxruntime",)


def is_equal(quantized, path, inputs, batch=None):
    fxquant.export_onnx(quantized, path, inputs, batch)
    far = [3 * x if x.is_floating_point() else x for x in inputs]
    found = fxquant.verify(quantized, path, [inputs, far], ORT)
    assert found.equal, str(found)
    assert found.nodes >= 2  # zeros and what follows them read no codes
    return found


def is_equal_alone(name, quantized, path, inputs):
    """The input of the example of an embedding is its table, which is no batch."""
    return is_equal(quantized, path, inputs, len(inputs[0]) if name == "embedding" else None)


NAMES = [rounding.name for rounding in ROUNDINGS]
ONE_EACH = [(name, NAMES[i % len(NAMES)]) for i, name in enumerate(EXAMPLES)]


@pytest.mark.parametrize(("name", "rounding"), ONE_EACH)
def test_every_operator(name, rounding, tmp_path):
    """Each in one of the roundings."""
    _, inputs, _, quantized = quantized_example(name, 0, QuantConfig(rounding=rounding))
    is_equal_alone(name, quantized, tmp_path / "net.onnx", inputs)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", NAMES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator_in_every_rounding(name, rounding, tmp_path):
    _, inputs, _, quantized = quantized_example(name, 1, QuantConfig(rounding=rounding))
    is_equal_alone(name, quantized, tmp_path / "net.onnx", inputs)


def on_other_codes(name, config, path):
    try:
        _, inputs, _, quantized = quantized_example(name, 1, config)
    except fxquant.FxQuantError:
        pytest.skip("these codes are refused: a sum of them may leave its accumulator")
    is_equal_alone(name, quantized, path, inputs)


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d", "matmul", "relu", "pad",
                                  "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "layer_norm"])
def test_codes_of_two_bytes(name, tmp_path):
    on_other_codes(name, WIDE, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("config", [WIDE, SIGNED], ids=["int16", "int8"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator_on_other_codes(name, config, tmp_path):
    on_other_codes(name, config, tmp_path / "net.onnx")


@settings(max_examples=6, deadline=None)
@given(spec=net_specs(), batch=st.integers(1, 3))
def test_random_networks(spec: NetSpec, batch: int, tmp_path_factory):
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs(2))
    laws.settle(prepared, spec.inputs(4))
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    quantized = fxquant.convert(prepared)
    fxquant.export_onnx(quantized, path, spec.inputs(2))
    found = fxquant.verify(quantized, path, spec.inputs(batch, seed=7) * 2, ORT)
    assert found.equal, str(found)


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_elements(name, tmp_path):
    function = MOVES[name]
    module = nn.Sequential(Call(lambda x: function(torch.relu(x))))
    x = torch.randn(2, 4, 7, 6)
    prepared = fxquant.prepare_qat(module, x)
    laws.settle(prepared, x)
    is_equal(fxquant.convert(prepared), tmp_path / "net.onnx", [x])


def moving(function):
    """A network that moves what a ReLU gives, and 8 rows."""
    x = torch.randn(8, 4, 7, 6)
    prepared = fxquant.prepare_qat(nn.Sequential(Call(lambda x: function(torch.relu(x)))), x)
    laws.settle(prepared, x)
    return fxquant.convert(prepared), x


@pytest.mark.parametrize("name", OF_ROWS)
def test_what_moves_rows(name, tmp_path):
    quantized, x = moving(OF_ROWS[name])
    fxquant.export_onnx(quantized, tmp_path / "net.onnx", x)
    found = fxquant.verify(quantized, tmp_path / "net.onnx", [(x[:n],) for n in (1, 2, 5, 8)], ORT)
    assert found.equal, str(found)


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_moves_elements_by_how_many_rows_there_are(name, tmp_path):
    """Refused for batches of any size; written for one."""
    quantized, x = moving(BY_ROWS[name])
    with pytest.raises(ExportError, match=r"node '\w+'[\s\S]*What to do: fix.* batch=…"):
        fxquant.export_onnx(quantized, tmp_path / "net.onnx", x)
    is_equal(quantized, tmp_path / "net.onnx", [x], batch=8)


@pytest.mark.parametrize("message", NO_FORM)
def test_moves_without_a_form(message, tmp_path):
    quantized, x = moving(NO_FORM[message])
    with pytest.raises(ExportError, match=message):
        fxquant.export_onnx(quantized, tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [
    {"kernel_size": 2, "dilation": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
])
def test_padding_as_wide_as_a_window(settings, tmp_path):
    """onnxruntime's pools have none."""
    x = torch.randn(2, 3, 9, 8)
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(**settings)), x)
    laws.settle(prepared, x)
    is_equal(fxquant.convert(prepared), tmp_path / "net.onnx", [x])


def test_names_metadata_and_a_batch_of_any_size(tmp_path):
    inputs = [torch.randn(2, 3, 4), torch.randint(0, 9, (2, 3))]
    prepared = fxquant.prepare_qat(Several(), inputs)
    laws.settle(prepared, *inputs)
    quantized, path = fxquant.convert(prepared), tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, inputs)
    larger = [torch.randn(5, 3, 4), torch.randint(0, 9, (5, 3))]
    assert fxquant.verify(quantized, path, [larger], ORT).equal
    model = onnx.load(path)
    assert [i.name for i in model.graph.input] == ["x", "i"]
    assert [i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input] == ["batch"] * 2
    assert len(model.graph.output) == 3
    assert model.producer_name == "fxquant"
    assert {p.key: p.value for p in model.metadata_props} == {"fxquant.rounding": "half_up"}
    modules = {p.value for n in model.graph.node for p in n.metadata_props
               if p.key == "fxquant.module"}
    assert {"layer", "rows"} <= modules


def test_nothing_is_written_that_nobody_reads(tmp_path):
    """The size of the batch, which a slice does not need."""
    x = torch.randn(2, 4, 7, 6)
    prepared = fxquant.prepare_qat(nn.Sequential(Call(lambda x: torch.relu(x)[:, 1:])), x)
    laws.settle(prepared, x)
    path = tmp_path / "net.onnx"
    is_equal(fxquant.convert(prepared), path, [x])
    graph = onnx.load(path).graph
    read = {name for node in graph.node for name in node.input} | {y.name for y in graph.output}
    assert all(read & set(node.output) for node in graph.node)


def convolution():
    layers = nn.Conv2d(4, 40, 3), nn.ReLU(), nn.Conv2d(40, 2, 1)
    prepared = fxquant.prepare_qat(nn.Sequential(*layers))
    x = torch.randn(2, 4, 7, 6)
    laws.settle(prepared, x)
    return fxquant.convert(prepared), x


def test_verify_says_where_and_by_how_much(tmp_path):
    """The bias of the first convolution is another one in the network than in the file."""
    quantized, x = convolution()
    path = tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, x)
    first = next(n.name for n in quantized.graph.nodes if "0" in n.name and n.op == "call_module")
    quantized.get_submodule(f"fxquant.{first}").bias += 2000
    found = fxquant.verify(quantized, path, x, ORT)
    assert not found.equal
    assert found.partings[0].node == first
    assert found.partings[0].largest >= 1
    assert f"'{first}' (onnxruntime)" in str(found)


def test_weights_beyond_the_limit_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fxquant.export.protobuf._FILE_LIMIT", 1000)
    quantized, x = convolution()
    is_equal(quantized, tmp_path / "net.onnx", [x])
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}


def test_refusals(tmp_path):
    quantized, x = convolution()
    path = tmp_path / "net.onnx"
    with pytest.raises(StageError, match="integer network"):
        fxquant.export_onnx(nn.Conv2d(1, 1, 1), path, x)
    with pytest.raises(ExportError, match="does not run on a batch"):
        fxquant.export_onnx(quantized, path, x[:, :2])
    with pytest.raises(ConfigError, match="batch"):
        fxquant.export_onnx(quantized, path, x, batch=0)
    with pytest.raises(ConfigError, match="the arguments of one call, as a list"):
        fxquant.export_onnx(quantized, path, None)
    with pytest.raises(ConfigError, match="ends in .onnx"):
        fxquant.export_onnx(quantized, tmp_path / "net", x)
    with pytest.raises(WriteError, match="there is no folder"):
        fxquant.export_onnx(quantized, tmp_path / "none" / "net.onnx", x)
    with pytest.raises(ConfigError, match="no file"):
        fxquant.verify(quantized, path, x, ORT)
    config = QuantConfig(keep_float=("1",))
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU()), config=config)
    laws.settle(prepared, x)
    with pytest.raises(ExportError, match="without keep_float"):
        fxquant.export_onnx(fxquant.convert(prepared), path, x)
    assert not list(tmp_path.iterdir()), "a refusal leaves no file"


def test_a_float64_network(tmp_path):
    """Its real numbers have 64 bits on both sides, which DequantizeLinear has not."""
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    for form, rounding in (("operators", "half_up"), ("qdq", "fp32_rne")):
        config = QuantConfig(rounding=rounding)
        layers = nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()).double()
        prepared = fxquant.prepare_qat(layers, x, config)
        laws.settle(prepared, x)
        quantized, path = fxquant.convert(prepared), tmp_path / "net.onnx"
        fxquant.export_onnx(quantized, path, x, form=form)
        assert fxquant.verify(quantized, path, [x, 3 * x], ORT).equal


class Sides(nn.Module):
    """A tuple and a dict come in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, pair, sides):
        return self.layer(pair[0]) + pair[1] + sides["left"]


def test_inputs_that_hold_several(tmp_path):
    inputs = [tuple(torch.randn(2, 4, 3, 3) for _ in range(2)), {"left": torch.randn(2, 4, 3, 3)}]
    prepared = fxquant.prepare_qat(Sides(), inputs)
    laws.settle(prepared, *inputs)
    quantized, path = fxquant.convert(prepared), tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, inputs)
    assert fxquant.verify(quantized, path, [inputs], ORT).equal
    names = [given.name for given in onnx.load(path).graph.input]
    assert names == ["pair_0", "pair_1", "sides_left"]


def test_examples_without_data(tmp_path):
    quantized, x = convolution()
    path = tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, x.to("meta"))
    assert fxquant.verify(quantized, path, iter([x, 2 * x]), ORT).equal


@pytest.mark.parametrize(("data", "error", "message"), [
    ([], DataError, "no data to verify with"),
    (None, ConfigError, "data is one batch, or several, got NoneType"),
    ([torch.zeros(2, 3, 7, 6)], DataError, "does not run on batch 1"),
    ([torch.zeros(2, 4, 7, 6)] * 2 + [torch.zeros(3, 4, 7, 6)], ExportError, "on batch 3"),
])
def test_data_that_cannot_be_used(data, error, message, tmp_path):
    quantized, x = convolution()
    fxquant.export_onnx(quantized, tmp_path / "net.onnx", x, batch=2)
    with pytest.raises(error, match=message):
        fxquant.verify(quantized, tmp_path / "net.onnx", data, ORT)


def test_files_of_others(tmp_path):
    quantized, x = convolution()
    path = tmp_path / "net.onnx"
    for content in (b"", b"not a model" * 9):
        path.write_bytes(content)
        with pytest.raises(FileError, match="no ONNX model"):
            fxquant.verify(quantized, path, x, ORT)
    fxquant.export_onnx(quantized, path, x)
    model = onnx.load(path)
    with pytest.raises(ExportError, match="takes 1 tensors, and there are 2"):
        fxquant.verify(quantized, path, [(x, x)], ORT)
    for names in (proto.output for proto in model.graph.node):
        names[:] = [f"{name}_" for name in names]
    for proto in model.graph.node:
        known = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer}
        proto.input[:] = [n if n in known or not n else f"{n}_" for n in proto.input]
    for output in model.graph.output:
        output.name += "_"
    del model.graph.value_info[:]
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="exported from another one"):
        fxquant.verify(quantized, path, x, ORT)


# ------------------------------------------------------------------------ between Q and DQ

RNE = QuantConfig(rounding="fp32_rne")


def is_equal_in_qdq(quantized, path, inputs, batch=None):
    fxquant.export_onnx(quantized, path, inputs, batch, form="qdq")
    found = fxquant.verify(quantized, path, [inputs, [3 * x for x in inputs]], ORT)
    assert found.equal, str(found)


@pytest.mark.parametrize("name", [op.name for op in OPS if op.qdq is not None])
def test_every_operator_that_engines_have(name, tmp_path):
    _, inputs, _, quantized = quantized_example(name, 2, RNE)
    is_equal_in_qdq(quantized, tmp_path / "net.onnx", inputs)


@pytest.mark.parametrize("size", [(12, 15), (9, 8)])
@pytest.mark.parametrize(("channels", "kernel", "stride", "padding"), [
    (3, 7, 2, 3), (3, 3, 2, 1), (3, (3, 2), 2, 0), (1, 5, 2, 2), (3, 3, (1, 2), 1), (2, 1, 2, 0),
    (3, 3, 1, 1),
])
def test_first_layers_are_arranged_for_engines(channels, kernel, stride, padding, size, tmp_path):
    """Three channels become four, or pixels channels: the sums are the same."""
    x = torch.randn(2, channels, *size)
    layer = nn.Sequential(nn.Conv2d(channels, 5, kernel, stride, padding))
    prepared = fxquant.prepare_qat(layer, x, RNE)
    laws.settle(prepared, x)
    is_equal_in_qdq(fxquant.convert(prepared), tmp_path / "net.onnx", [x])


@pytest.mark.parametrize("kernel", [2, 3, (1, 5), (2, 3), 4, 6])
def test_means_of_codes_that_an_engine_computes_in_float(kernel, tmp_path):
    """Every sum of a window comes up, ties to the even one of both neighbours among them."""
    x = torch.arange(-128, 128).repeat(40).reshape(1, 4, 40, 64)[..., torch.randperm(64)] / 128
    prepared = fxquant.prepare_qat(nn.Sequential(nn.AvgPool2d(kernel, 1)), x, RNE)
    laws.settle(prepared, x)
    is_equal_in_qdq(fxquant.convert(prepared), tmp_path / "net.onnx", [x])


def what_runs(path):
    """The operators that onnxruntime makes of a file."""
    seen = path.with_name("seen.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(seen), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(seen).graph.node}


def test_engines_run_qdq_on_integers(tmp_path):
    """As QLinearConv and no Conv: what is said of speed rests on it."""
    x = torch.randn(2, 8, 7, 6)
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), x, RNE)
    laws.settle(prepared, x)
    path = tmp_path / "net.onnx"
    fxquant.export_onnx(fxquant.convert(prepared), path, x, form="qdq")
    kinds = what_runs(path)
    assert "QLinearConv" in kinds
    assert not {"Conv", "Relu", "Clip", "Max"} & kinds


@pytest.mark.parametrize("form", ["operators", "qdq"])
@pytest.mark.parametrize(("bits", "stored"), [(2, 4), (4, 4), (5, 8)])
def test_weights_of_4_bits_are_stored_in_4(bits, stored, form, tmp_path):
    """Engines make bytes of them as they load the file, and compute on integers as ever."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten()
    x = torch.randn(2, 3, 8, 7)
    config = QuantConfig(weight=QuantScheme(bits=bits, per_channel=True), rounding="fp32_rne")
    prepared = fxquant.prepare_qat(nn.Sequential(*layers, nn.Linear(96, 5)), x, config)
    laws.settle(prepared, x)
    quantized, path = fxquant.convert(prepared), tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, x, form=form)
    assert fxquant.verify(quantized, path, [x, 3 * x], ORT).equal
    nibbles = [t.dims for t in onnx.load(path).graph.initializer
               if t.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)]
    assert len(nibbles) == (3 if stored == 4 else 0)
    if form == "qdq":
        assert {"QLinearConv", "QGemm"} <= what_runs(path)


@pytest.mark.parametrize("name", ["conv2d", "linear", "add", "cat", "relu"])
def test_codes_of_two_bytes_stay_integers_in_qdq(name, tmp_path):
    config = QuantConfig(activation=WIDE.activation, rounding="fp32_rne")
    _, inputs, _, quantized = quantized_example(name, 1, config)
    is_equal_in_qdq(quantized, tmp_path / "net.onnx", inputs)


def test_concats_of_ties(tmp_path):
    """Operands of a fifth, a half and 10 times the scale: an engine divides by it, and of some ties
    the quotient lies on one side.
    """
    x = torch.randn(8, 4, 8, 8)
    module = Call(lambda x: torch.cat([x * 0.1, x, x * 5, x * 10, torch.sigmoid(x)], 1))
    prepared = fxquant.prepare_qat(nn.Sequential(module), x, QuantConfig(rounding="fp32_rne"))
    laws.settle(prepared, x)
    is_equal_in_qdq(fxquant.convert(prepared), tmp_path / "net.onnx", [x])
    assert "QLinearConcat" in what_runs(tmp_path / "net.onnx")


def test_why_they_stay_integers(tmp_path, monkeypatch):
    """Between DequantizeLinear and QuantizeLinear of 16 bits onnxruntime convolves in float32, and
    some codes are others, by 1.
    """
    monkeypatch.setattr("fxquant.ops.conv.grids_of", lambda call: call.inputs)
    torch.manual_seed(0)
    x = torch.randn(16, 8, 12, 12)
    config = QuantConfig(activation=WIDE.activation, rounding="fp32_rne")
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(8, 8, 3)), x, config)
    laws.settle(prepared, x)
    quantized, path = fxquant.convert(prepared), tmp_path / "net.onnx"
    fxquant.export_onnx(quantized, path, x, form="qdq")
    assert "Conv" in what_runs(path)
    (parting,) = (p for p in fxquant.verify(quantized, path, x, ORT).partings if p.largest >= 1)
    assert 0 < parting.differing < parting.elements / 500
    assert parting.largest == 1


def test_qdq_is_refused_where_engines_round_otherwise(tmp_path):
    quantized, x = convolution()
    with pytest.raises(ExportError, match="fp32_rne"):
        fxquant.export_onnx(quantized, tmp_path / "net.onnx", x, form="qdq")
    with pytest.raises(ConfigError, match="form is one of"):
        fxquant.export_onnx(quantized, tmp_path / "net.onnx", x, form="qlinear")
