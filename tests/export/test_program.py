"""A program of torch.export: the same integers, for any batch, in a process without fxquant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import ExportError
from tests import laws
from tests.ops.test_laws import EXAMPLES, Call, quantized_example

SOME = ["batch_norm", "weighted_sum", "avg_pool2d", "pad", "layer_norm", "matmul"]


def is_equal(name: str) -> None:
    _, inputs, _, quantized = quantized_example(name, 0)
    batch = len(inputs[0]) if name == "embedding" else None  # its input is a table, and no batch
    program = fxquant.export_program(quantized, inputs, batch).module()
    more = [x.repeat_interleave(3, 0) if batch is None and len(x) == len(inputs[0]) else x
            for x in inputs]
    for given in (inputs, more):
        laws.assert_equal(program(*given), quantized(*given))


@pytest.mark.parametrize("name", SOME)
def test_operators(name):
    is_equal(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator(name):
    is_equal(name)


FRESH = """
import sys, torch
program = torch.export.load(sys.argv[1] + "/net.pt2").module()
x, y = torch.load(sys.argv[1] + "/both.pt")
assert "fxquant" not in sys.modules
assert torch.equal(program(x), y)
"""


def network():
    x = torch.randn(2, 3, 8, 8)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    prepared = fxquant.prepare_qat(nn.Sequential(*layers), x)
    laws.settle(prepared, x)
    return fxquant.convert(prepared)


def test_in_a_process_without_fxquant(tmp_path: Path):
    quantized, x = network(), torch.randn(5, 3, 8, 8)
    torch.export.save(fxquant.export_program(quantized, x), tmp_path / "net.pt2")
    torch.save((x, quantized(x)), tmp_path / "both.pt")
    subprocess.run([sys.executable, "-c", FRESH, tmp_path], check=True, cwd=tmp_path)


@pytest.mark.slow
def test_ahead_of_time(tmp_path: Path):
    """Where there is a compiler: the package of AOTInductor gives the same integers."""
    quantized, x = network(), torch.randn(5, 3, 8, 8)
    program = fxquant.export_program(quantized, x, batch=5)
    path = torch._inductor.aoti_compile_and_package(program, package_path=f"{tmp_path}/net.pt2")
    assert torch.equal(torch._inductor.aoti_load_package(path)(x), quantized(x))


def test_what_is_not_given_is_no_input():
    """Arguments that have a default, as the masks of nn.TransformerEncoderLayer."""

    class Net(nn.Linear):
        def forward(self, x, bias=None, *, twice=False):
            y = super().forward(x if bias is None else x + bias)
            return y + y if twice else y

    x = torch.randn(4, 3)
    prepared = fxquant.prepare_qat(Net(3, 2), x)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    assert torch.equal(fxquant.export_program(quantized, x).module()(x[:3]), quantized(x[:3]))


def test_what_cannot_be_followed():
    quantized, x = network(), torch.randn(5, 3, 8, 8)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), Call(lambda x: x[: x.shape[0] // 2]))
    prepared = fxquant.prepare_qat(flat, x)
    laws.settle(prepared, x)
    with pytest.raises(ExportError, match=r"What to do: fix the size of batches, batch=…"):
        fxquant.export_program(fxquant.convert(prepared), x)
    with pytest.raises(ExportError, match="does not run on a batch"):
        fxquant.export_program(quantized, x[:, :, :4])


def test_inputs_and_outputs_in_dictionaries():
    class Net(nn.Linear):
        def forward(self, given):
            return {"sum": super().forward(given["x"]) + given["y"], "times": 2}

    given = {"x": torch.randn(4, 3), "y": torch.randn(4, 2)}
    prepared = fxquant.prepare_qat(Net(3, 2), [given])
    laws.settle(prepared, given)
    quantized = fxquant.convert(prepared)
    program = fxquant.export_program(quantized, [given]).module()
    fewer = {name: value[:3] for name, value in given.items()}
    assert torch.equal(program(fewer)["sum"], quantized(fewer)["sum"])
