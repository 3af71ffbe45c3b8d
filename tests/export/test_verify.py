"""What verify makes of an engine that gives other values, where a test says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import ConfigError, StageError
from fxquant.export import engines
from tests import laws

pytest.importorskip("onnx", reason="onnx is in the extra `onnx`")
pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")

ORT = ("onnxruntime",)
ROWS = 2


def exported(folder):
    torch.manual_seed(0)
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU()))
    x = torch.randn(ROWS, 4, 3, 3)
    laws.settle(prepared, x)
    quantized, path = fxquant.convert(prepared), folder / "net.onnx"
    fxquant.export_onnx(quantized, path, x)
    names = [node.name for node in quantized.graph.nodes if node.op == "call_module"]
    return quantized, path, x, names


def let_engine_part(monkeypatch, wrong):
    """`wrong(batch, name, value)` is what it gives of a node, in the batches 0, 1, …"""

    def engine(path, model):
        run, batch = engines._onnxruntime(path, model), iter(range(9))

        def with_wrong_values(inputs):
            number = next(batch)
            return {name: wrong(number, name, value) for name, value in run(inputs).items()}

        return with_wrong_values

    monkeypatch.setitem(engines._OF_ONNX, "onnxruntime", engine)


def test_batches_that_are_equal_count_as_well(tmp_path, monkeypatch):
    """One of the 2·36 codes of each of three batches is 2 more, in the second batch alone."""
    quantized, path, x, (_, first, *_) = exported(tmp_path)

    def wrong(batch, name, value):
        if (batch, name) == (1, first):
            value = value.clone()
            value.view(-1)[5] += 2
        return value

    let_engine_part(monkeypatch, wrong)
    found = fxquant.verify(quantized, path, [x, x, x], ORT)
    assert found.partings == ((*ORT, first, 1, 3 * ROWS * 36, 2.0),)
    assert not found.outputs
    assert not found.equal


def test_a_code_that_the_type_of_ours_does_not_hold_is_another_one(tmp_path, monkeypatch):
    """q + 256 is q again as a byte."""
    quantized, path, x, (_, first, *_) = exported(tmp_path)
    let_engine_part(
        monkeypatch, lambda batch, name, v: v.to(torch.int32) + 256 if name == first else v
    )
    (parting,) = fxquant.verify(quantized, path, x, ORT).partings
    assert (parting.node, parting.differing, parting.largest) == (first, ROWS * 36, 256.0)


def test_partings_stand_in_the_order_of_the_network(tmp_path, monkeypatch):
    """The last node parts in the first batch, the first one in the second."""
    quantized, path, x, (first, *_, last, _) = exported(tmp_path)
    parting = [(0, last), (1, first)]
    let_engine_part(
        monkeypatch, lambda batch, name, v: v.bitwise_not() if (batch, name) in parting else v
    )
    found = fxquant.verify(quantized, path, [x, x], ORT)
    assert [p.node for p in found.partings] == [first, last]


def converted(model, x):
    prepared = fxquant.prepare_qat(model, x)
    laws.settle(prepared, x)
    return fxquant.convert(prepared)


def test_the_file_of_another_network(tmp_path):
    _, path, x, _ = exported(tmp_path)
    wider = converted(nn.Sequential(nn.Conv2d(4, 5, 1), nn.GELU()), x)
    with pytest.raises(ConfigError, match=r"\[2, 5, 3, 3\] in the network and \[2, 4, 3, 3\]"):
        fxquant.verify(wider, path, x, ORT)
    twice = converted(Twice(), x)
    with pytest.raises(ConfigError, match="gives 2 tensors and the file 1"):
        fxquant.verify(twice, path, x, ORT)
    with pytest.raises(StageError, match="integer network"):
        fxquant.verify(nn.GELU(), path, x, ORT)


class Twice(nn.Module):
    def forward(self, x):
        return torch.relu(x), x.sigmoid()
