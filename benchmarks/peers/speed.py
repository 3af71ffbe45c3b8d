"""What other tools cost, beside fxquant in the same process, over the same float network.

    <its python> benchmarks/peers/speed.py TOOL [--rounds 10] [--only WORD] [--compiled]

    QAT step         forward, backward and SGD of what the tool has made ready to be trained
    int8             what it gives to be run, over the float network with folded batch norms
    int8, compiled   the same through torch.compile, where the tool is made for that

One pinned thread, channels_last. In each round the float network, fxquant's and the tool's take
turns; a ratio is the median of the rounds' ratios. Rows of other tools stay in results/speed.json,
and what is there is not measured again. Each tool runs in an environment of its own (README.md).
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from measures import interleaved, one_quiet_thread
from qat_step import Loop
from rows import Row, fill

RESULTS = Path(__file__).parent / "results" / "speed.json"
STEP, INT8, COMPILED = "QAT step", "int8", "int8, compiled"
COLUMNS = {
    "tool": "{tool}",
    "measured": "{what}",
    "network": "{network}",
    "tool over float": "{ratio}",
    "fxquant over float": "{fxquant}",
    "": "{error}",
}
Call = Callable[[], object]


def resnet18() -> nn.Module:
    """With random weights."""
    net: nn.Module = torchvision.models.resnet18()
    return net


def darts() -> nn.Module:
    """The network of the DARTS paper, smaller."""
    return NetworkCIFAR(16, 10, 8, DARTS_V2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18 64x64 b16": (resnet18, (16, 3, 64, 64)),
    "DARTS_V2 C16 L8 b16": (darts, (16, 3, 32, 32)),
    "resnet18 64x64 b1": (resnet18, (1, 3, 64, 64)),
    "DARTS_V2 C16 L8 b1": (darts, (1, 3, 32, 32)),
}
"""A step is measured of those with 16 pictures alone."""


@dataclass(frozen=True)
class Way:
    """One use of one tool: what its packages make of a float network, with one input.

    A network that is trained starts in train(), what is run is made of one in eval().
    """

    tool: str
    packages: tuple[str, ...]
    what: str
    make: Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]


# ------------------------------------------------------------------------ torch.ao, FX graph mode


def torch_ao_step(net: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of quantization aware training has it."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    prepared: nn.Module = prepare_qat_fx(net, get_default_qat_qconfig_mapping("x86"), (x,))
    return prepared


def torch_ao_int8(net: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of static quantization has it."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    prepared = prepare_fx(net, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantized: nn.Module = convert_fx(prepared)
    return quantized


# ------------------------------------------------------------------------ torchao, PT2E


def _x86(is_qat: bool) -> Any:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat)
    return x86.X86InductorQuantizer().set_global(config)


def pt2e_step(net: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of quantization aware training has it."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    exported = torch.export.export(net, (x,), strict=True).module()
    prepared: nn.Module = prepare_qat_pt2e(exported, _x86(is_qat=True))
    allow_exported_model_train_eval(prepared)
    return nn.Sequential(prepared)  # whose train() gives a module, as every other's


def pt2e_int8(net: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of static quantization has it: float operators between QDQ pairs."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = torch.export.export(net, (x,), strict=True).module()
    prepared = prepare_pt2e(exported, _x86(is_qat=False))
    prepared(x)
    quantized: nn.Module = convert_pt2e(prepared)
    return quantized


def pt2e_compiled(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """By inductor, which takes the pairs for int8 operators where weights are frozen."""
    quantized = pt2e_int8(net, x)
    with torch._inductor.config.patch(freezing=True):
        compiled = torch.compile(quantized, dynamic=False)
        compiled(x)
    return compiled


# ------------------------------------------------------------------------ Brevitas


def brevitas_step(net: nn.Module, x: Tensor) -> nn.Module:
    """Graph mode, which merges batch norms; calibrated with one batch."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    quantized: nn.Module = quantize(preprocess_for_quantize(net.eval()))
    with torch.no_grad(), calibration_mode(quantized):
        quantized(x)
    return quantized


# ------------------------------------------------------------------------ AIMET


def aimet_step(net: nn.Module, x: Tensor) -> nn.Module:
    """Prepared, batch norms folded, simulated with the encodings of one batch."""
    from aimet_torch import QuantizationSimModel
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model

    prepared = prepare_model(net.eval())
    fold_all_batch_norms(prepared, tuple(x.shape), dummy_input=x)
    simulated = QuantizationSimModel(
        prepared, dummy_input=x, default_param_bw=8, default_output_bw=8
    )
    simulated.compute_encodings(lambda model, _: model(x), None)
    trained: nn.Module = simulated.model
    return trained


# ------------------------------------------------------------------------ NNCF


def nncf_step(net: nn.Module, x: Tensor) -> nn.Module:
    """nncf.quantize on one batch, then trained."""
    import nncf

    trained: nn.Module = nncf.quantize(net.eval(), nncf.Dataset([x]), subset_size=1)
    return trained


def nncf_int8(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """The same, run by OpenVINO."""
    import nncf

    return _openvino(nncf.strip(nncf_step(net, x).eval(), example_input=x), x)


def openvino_float(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """The float network in the same engine, for scale."""
    return _openvino(net, x)


def _openvino(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    import openvino

    model = openvino.convert_model(net, example_input=x, input=[tuple(x.shape)])
    one_thread = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    compiled = openvino.compile_model(
        model, "CPU", one_thread | {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feed = x.contiguous().numpy()
    return lambda _: compiled(feed)


# ------------------------------------------------------------------------ onnxruntime


def onnxruntime_int8(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """quantize_static of its own, QDQ."""
    return _onnxruntime(net, x, "onnxruntime QDQ int8")


def onnxruntime_float(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """The float network in the same engine, for scale."""
    return _onnxruntime(net, x, "onnxruntime float")


def _onnxruntime(net: nn.Module, x: Tensor, which: str) -> Callable[[Tensor], Any]:
    from integer_speed import engine_calls

    call = engine_calls(net, x)[which]
    return lambda _: call()


WAYS = (
    Way("torch.ao FX", ("torch",), STEP, torch_ao_step),
    Way("torch.ao FX", ("torch",), INT8, torch_ao_int8),
    Way("torchao PT2E", ("torch", "torchao"), STEP, pt2e_step),
    Way("torchao PT2E", ("torch", "torchao"), INT8, pt2e_int8),
    Way("torchao PT2E", ("torch", "torchao"), COMPILED, pt2e_compiled),
    Way("Brevitas", ("torch", "brevitas"), STEP, brevitas_step),
    Way("AIMET", ("torch", "aimet-torch"), STEP, aimet_step),
    Way("NNCF", ("torch", "nncf"), STEP, nncf_step),
    Way("NNCF, OpenVINO", ("torch", "nncf", "openvino"), INT8, nncf_int8),
    Way("OpenVINO float", ("torch", "openvino"), INT8, openvino_float),
    Way("onnxruntime", ("torch", "onnxruntime"), INT8, onnxruntime_int8),
    Way("onnxruntime float", ("torch", "onnxruntime"), INT8, onnxruntime_float),
)
"""Brevitas and AIMET compute in float what integers would give, and have no int8 kernels."""


# ------------------------------------------------------------------------ measuring


def calls_of_step(way: Way, net: nn.Module, x: Tensor) -> dict[str, Call]:
    """A step of each; every network starts from the same weights."""
    ours = fxquant.prepare_qat(net, x)
    theirs = way.make(copy.deepcopy(net).train(), x)
    assert isinstance(theirs, nn.Module)
    loops = {"float": Loop(net, x), "fxquant": Loop(ours, x), "tool": Loop(theirs, x)}
    return {name: loop.step for name, loop in loops.items()}


def calls_of_int8(way: Way, net: nn.Module, x: Tensor) -> dict[str, Call]:
    """A forward of each, without gradients."""
    x = x.contiguous(memory_format=torch.channels_last)
    net = net.eval().to(memory_format=torch.channels_last)
    real = fuse(copy.deepcopy(net))
    prepared = fxquant.prepare_qat(net, x, fxquant.QuantConfig(batch_norm="fold"))
    prepared.train()(x)
    ours: Callable[[Tensor], Any] = fxquant.convert(prepared)
    ours = torch.compile(ours, dynamic=False) if way.what == COMPILED else ours
    theirs = way.make(copy.deepcopy(net), x)
    return {"float": lambda: real(x), "fxquant": lambda: ours(x), "tool": lambda: theirs(x)}


def measure(way: Way, name: str, rounds: int, tell: Callable[[], object]) -> Row:
    """The ratios of one way on one network, or what its tool says instead."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    row: Row = {"versions": {package: version(package) for package in way.packages}}
    try:
        if way.what == STEP:
            took = interleaved(calls_of_step(way, net, x), rounds, tell=tell)
        else:
            with torch.no_grad():
                took = interleaved(calls_of_int8(way, net, x), rounds, tell=tell)
    except Exception as error:  # whatever a tool raises is its result
        line = str(error).strip().splitlines()[:1]
        said = f"{type(error).__name__}: {line[0] if line else ''}"
        return row | {"ratio": None, "fxquant": None, "error": said[:200]}
    ratios = {name: round(took.ratio(name, over="float"), 3) for name in ("tool", "fxquant")}
    row |= {"ratio": ratios["tool"], "fxquant": ratios["fxquant"], "error": ""}
    return row | {"float_ms": round(took.ms("float"), 3)}


def main() -> None:
    """Measure what is not in the file yet, print a table of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tools = list(dict.fromkeys(way.tool for way in WAYS))
    parser.add_argument("tools", nargs="+", choices=tools)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--compiled", action="store_true", help="compile, which takes minutes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    one_quiet_thread()
    jobs = {
        (way, name): {"tool": way.tool, "what": way.what, "network": name}
        for way in WAYS
        for name in NETWORKS
        if way.tool in arguments.tools and arguments.only in name
        if way.what != STEP or name.endswith("b16")
        if way.what != COMPILED or arguments.compiled
    }

    def measured(job: Row, tell: Callable[[], object]) -> Row:
        way, name = next(key for key, known in jobs.items() if known == job)
        return measure(way, name, arguments.rounds, tell)

    fill(COLUMNS, list(jobs.values()), measured, arguments.rounds + 3, arguments.json)


if __name__ == "__main__":
    main()
