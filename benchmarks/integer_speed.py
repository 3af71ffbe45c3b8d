"""How quick an integer network is, over the float network that it was made from.

    python benchmarks/integer_speed.py [--quick] [--rounds 15] [--json FILE]

One pinned thread, channels_last, batch norms folded. All calls of a network take turns in one
process; a ratio is the median of the rounds' ratios over the float network in eager mode. Every
integer network is compared with the prepared one's eval(), bit for bit, before it is measured.

    eager, auto         convert(prepared), as it is
    eager, float32      the same without int8 kernels, as on any processor
    compiled, auto      torch.compile(convert(prepared), fullgraph=True, options=STAYS_AS_IT_IS)
    compiled, float32   both
    float, compiled     torch.compile of the float network, with the same options
    onnxruntime …       the float network, and its QDQ form by onnxruntime.quantization

What is not installed is left out. The file is written after each network; rows of networks that
were not asked for stay in it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from measures import interleaved, one_quiet_thread, read, write

# No guards on what a network holds, which cost a tenth where layers are small; C++ between loops.
STAYS_AS_IT_IS: dict[str, Any] = {
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
    "cpp_wrapper": True,
}
RESULTS = Path(__file__).parent / "results" / "integer_speed.json"
Call = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A network and the shape of its input."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def resnet18() -> nn.Module:
    """With random weights."""
    net: nn.Module = torchvision.models.resnet18()
    return net


def darts() -> nn.Module:
    """The network of the DARTS paper, smaller."""
    return NetworkCIFAR(16, 10, 8, DARTS_V2)


WORKLOADS = (
    Workload("resnet18 64x64 b1", resnet18, (1, 3, 64, 64)),
    Workload("resnet18 64x64 b16", resnet18, (16, 3, 64, 64)),
    Workload("resnet18 224x224 b1", resnet18, (1, 3, 224, 224)),
    Workload("DARTS_V2 C16 L8 b1", darts, (1, 3, 32, 32)),
    Workload("DARTS_V2 C16 L8 b16", darts, (16, 3, 32, 32)),
)


def calls_of(workload: Workload, compiles: bool, tell: Callable[[str], None]) -> dict[str, Call]:
    """Everything that is measured of one workload, ready to run; "float" is among it."""
    torch.manual_seed(0)
    net = workload.make().eval()
    x = torch.randn(workload.shape).contiguous(memory_format=torch.channels_last)
    real = fuse(copy.deepcopy(net)).to(memory_format=torch.channels_last)
    prepared = fxquant.prepare_qat(net, x, fxquant.QuantConfig(batch_norm="fold")).train()
    for _ in range(2):
        prepared(torch.randn(16, *workload.shape[1:]))
    expected = prepared.eval()(x)
    calls: dict[str, Call] = {"float": lambda: real(x)}
    for choice in ("auto", "float32"):
        quantized = fxquant.convert(prepared)
        fxquant.use_kernels(quantized, choice)
        calls[f"eager, {choice}"] = proved(quantized, x, expected)
        if compiles:
            tell(f"{workload.name}: compiles, {choice}")
            compiled = compiled_once(quantized)
            calls[f"compiled, {choice}"] = proved(compiled, x, expected)
    if compiles:
        tell(f"{workload.name}: compiles float")
        quick = compiled_once(real)
        calls["float, compiled"] = lambda: quick(x)
    if importlib.util.find_spec("onnxruntime") is not None:
        tell(f"{workload.name}: onnxruntime")
        calls |= engine_calls(real, x)
    return calls


def compiled_once(network: nn.Module) -> Callable[[Tensor], Any]:
    """For inputs of one shape, and numbers that stay as they are."""
    quick: Callable[[Tensor], Any] = torch.compile(
        network, fullgraph=True, dynamic=False, options=dict(STAYS_AS_IT_IS)  # it takes some out
    )
    return quick


def proved(network: Callable[[Tensor], Any], x: Tensor, expected: Tensor) -> Call:
    """The call, once it has shown that it gives what eval() gives."""
    if not torch.equal(network(x), expected):
        raise SystemExit("an integer network differs from eval(): there is nothing to measure")
    return lambda: network(x)


def engine_calls(real: nn.Module, x: Tensor) -> dict[str, Call]:
    """onnxruntime on the float network, and on what its own quantization makes of it."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"x": torch.randn(x.shape).numpy()} for _ in range(2)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    feed, calls = {"x": x.contiguous().numpy()}, dict[str, Call]()
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, qdq = (f"{folder}/{name}.onnx" for name in ("float", "ready", "qdq"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(real, (x,), plain, input_names=["x"], dynamo=False)
        quant_pre_process(plain, ready)
        quantize_static(ready, qdq, Batches(), QuantFormat.QDQ, per_channel=True)
        for name, path in (("onnxruntime float", plain), ("onnxruntime QDQ int8", qdq)):
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            calls[name] = lambda session=session: session.run(None, feed)
    return calls


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="no torch.compile, five rounds")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    one_quiet_thread()
    rounds = 5 if arguments.quick else arguments.rounds
    chosen = [workload for workload in WORKLOADS if arguments.only in workload.name]
    names = [workload.name for workload in chosen]
    known = read(arguments.json) if arguments.json.exists() else []
    rows = [row for row in known if row["network"] not in names]
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with torch.no_grad(), Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(chosen) * (rounds + 3))
        for workload in chosen:
            def tell(text: str) -> None:
                progress.update(task, description=text)

            calls = calls_of(workload, not arguments.quick, tell)
            tell(workload.name)
            took = interleaved(calls, rounds, tell=lambda: progress.advance(task))
            for name in calls:
                ratio, ms = took.ratio(name, over="float"), took.ms(name)
                rows.append({"network": workload.name, "what": name, "ratio": ratio, "ms": ms})
            write(arguments.json, rows)
            torch.compiler.reset()
    console.print(table(rows))


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each thing measured, a column for each network."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    found = Table("time over float eager", *networks)
    ratios = {(row["what"], row["network"]): row for row in rows}
    for what in dict.fromkeys(row["what"] for row in rows):
        cells = [ratios.get((what, network)) for network in networks]
        found.add_row(what, *("" if row is None else _cell(row) for row in cells))
    return found


def _cell(row: dict[str, Any]) -> str:
    return f"{row['ms']:.1f} ms" if row["what"] == "float" else f"{row['ratio']:.2f}"


if __name__ == "__main__":
    main()
