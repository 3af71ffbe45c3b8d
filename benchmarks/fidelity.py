"""What is validated against what is shipped: eval() beside the converted network, docs/fidelity.md.

    python benchmarks/fidelity.py [--models resnet18 mobilenet_v2]

Each network learns scikit-learn's digits in float. Then each tool prepares a copy of it, trains
that on for the same 20 batches, and converts it; outputs of both are compared on 256 digits held
out. torch.ao's FX mode is run with each engine it has here, with that engine's default settings
and its observers stopped.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
import zoo
from measures import read, write
from zoo_trained import BATCH, digits, random_batches, train

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
PAGE = Path(__file__).parents[1] / "docs" / "fidelity.md"
MODELS = ("resnet18",)  # others by name
ENGINES = ("x86", "onednn", "qnnpack")
STEPS, TEST, SIZE = 20, 256, 32
HEAD = """\
# What is validated, and what is shipped

Made by `python benchmarks/fidelity.py`. Networks of torchvision learn scikit-learn's digits
(32×32) in float. Each tool prepares a copy, trains it on for 20 batches, and converts it. The
outputs of the prepared network in `eval()`, which is what one validates, stand beside those of the
converted one, which is what one ships, on 256 digits held out.

- *differ*: the share of logits that differ by half a step or more; ours at all
- *steps*: the largest difference, in steps of the logits' grid
- *told otherwise*: digits that the two networks read differently

torch.ao is in FX mode, with each engine's default settings and its observers stopped.
"""


class Pair(NamedTuple):
    """The outputs of a prepared network in eval() and of the converted one: [N, 10] each."""

    validated: Tensor
    shipped: Tensor


def with_fxquant(net: nn.Module, x: Tensor, tune: Callable[[nn.Module], None]) -> Pair:
    """Through fxquant."""
    prepared = fxquant.prepare_qat(net.train(), x[:2])
    tune(prepared)
    return Pair(_outputs(prepared, x), _outputs(fxquant.convert(prepared), x))


def with_torch_ao(
    net: nn.Module, x: Tensor, tune: Callable[[nn.Module], None], engine: str
) -> Pair:
    """Through torch.ao's FX mode, for one of its engines."""
    from torch.ao.quantization import disable_observer, get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    torch.backends.quantized.engine = engine
    prepared = prepare_qat_fx(net.train(), get_default_qat_qconfig_mapping(engine), (x[:2],))
    tune(prepared)
    prepared.eval().apply(disable_observer)
    return Pair(_outputs(prepared, x), _outputs(convert_fx(copy.deepcopy(prepared)), x))


def _outputs(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([net.eval()(part) for part in x.split(BATCH)])


def step_of(shipped: Tensor) -> float:
    """The step of the grid on which outputs lie: the least distance of two of them."""
    gaps = shipped.flatten().double().unique().diff()
    return float(gaps[gaps > 1e-6 * shipped.abs().max()].min())


def measure(name: str) -> list[dict[str, Any]]:
    """A row a tool."""
    torch.manual_seed(0)
    net = zoo.build(name, zoo.settings(name)[0])
    data = digits(SIZE)
    known = len(data.labels) - TEST
    train(net, data, random_batches(known))
    x = data.batch(torch.arange(known, known + TEST))

    def tune(prepared: nn.Module) -> None:
        torch.manual_seed(1)
        batches = random_batches(known)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3, momentum=0.9)
        prepared.train()
        for _ in range(STEPS):
            indices = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(prepared(data.batch(indices)), data.labels[indices]).backward()
            optimizer.step()

    tools = {"fxquant": lambda: with_fxquant(copy.deepcopy(net), x, tune)}
    for engine in ENGINES:
        if engine in torch.backends.quantized.supported_engines:
            tools[f"torch.ao FX, {engine}"] = (
                lambda engine=engine: with_torch_ao(copy.deepcopy(net), x, tune, engine)
            )
    rows = []
    for tool, run in tools.items():
        row = {"network": name, "tool": tool, **compared(run(), exactly=tool == "fxquant")}
        print(*row.values(), sep="  ", flush=True)
        rows.append(row)
    return rows


def compared(pair: Pair, exactly: bool) -> dict[str, float]:
    """How far the two are apart."""
    step = step_of(pair.shipped)
    apart = (pair.validated.double() - pair.shipped.double()).abs() / step
    return {
        "differ": float((apart > 0 if exactly else apart >= 0.5).double().mean()),
        "steps": round(float(apart.max()), 1),
        "told_otherwise": int((pair.validated.argmax(1) != pair.shipped.argmax(1)).sum()),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """docs/fidelity.md."""
    lines = [
        *HEAD.splitlines(), "", f"torch {torch.__version__}.", "",
        "| network | tool | differ | steps | told otherwise |", "| --- | --- | --: | --: | --: |",
    ]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row['network']} | {row['tool']} | {100 * row['differ']:.1f} % | "
            f"{row['steps']:g} | {row['told_otherwise']} of {TEST} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each network, keep its rows as they come, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    wanted = parser.parse_args().models
    warnings.simplefilter("ignore")  # torch.ao says that it is deprecated, at every call
    torch.set_num_threads(1)
    rows = read(RESULTS) if RESULTS.exists() else []
    for name in wanted:
        rows = [row for row in rows if row["network"] != name] + measure(name)
        write(RESULTS, rows)
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
