"""Run every edge-case network through a tool's rewrites, and compare with the float network.

What the scripts of all tools share. Imports torch alone, for it runs in the tools' own
environments. Each result is one line of JSON on stdout, written as soon as it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))
from tests.edge_cases.networks import NETWORKS, Network

# From the float network (in eval) and an input to what the tool makes of it, with all rounding off.
Way = Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
ABSOLUTE = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")  # where packages lie is no part of a result
KEPT = 1e-4  # float32 re-association stays three orders below


def leaves(output: Any) -> list[Tensor]:
    """The tensors in a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [leaf for value in output.values() for leaf in leaves(value)]
    if isinstance(output, (tuple, list)):
        return [leaf for value in output for leaf in leaves(value)]
    return []


def relative_error(ours: Any, float_output: Any) -> float:
    """Largest difference over the largest value, of the output where that is worst."""
    pairs = list(zip(leaves(ours), leaves(float_output), strict=True))
    return max((_error(a, b) for a, b in pairs), key=lambda e: math.inf if math.isnan(e) else e)


def _error(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"an output of shape {tuple(theirs.shape)} came as {tuple(ours.shape)}")
    difference = (ours - theirs).abs().max().item()
    return difference / (theirs.abs().max().item() or 1.0)


def first_line(error: BaseException) -> str:
    """The kind of error, and the first line of what it says; two where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        place = traceback.extract_tb(error.__traceback__)[-1]
        lines = [f"(no message) at {place.filename}: {place.line}"]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    said = ABSOLUTE.sub("", said.replace(f"{ROOT}/", ""))
    return f"{type(error).__name__}: {said}"[:240]


def try_way(
    network: Network, way: Way, refusals: tuple[type[BaseException], ...]
) -> dict[str, Any]:
    """`kept`, `changed` with an error, `refused` or `crashed` with a first line."""
    torch.manual_seed(SEED)
    model = network.make().eval()
    torch.manual_seed(SEED)
    x = torch.randn(network.input_shape)
    with torch.no_grad():
        expected = model(x.clone())
    try:
        rewritten = way(model, x.clone())
        with torch.no_grad():
            error = relative_error(rewritten(x.clone()), expected)
    except refusals as refusal:
        return {"result": "refused", "line": first_line(refusal)}
    except Exception as crash:
        return {"result": "crashed", "line": first_line(crash)}
    if error <= KEPT:
        return {"result": "kept", "error": error}
    return {"result": "changed", "error": error if math.isfinite(error) else str(error)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What tools print goes nowhere, whoever prints it; results have a way out of their own."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)


def installed(*packages: str) -> dict[str, str]:
    """The versions of these packages."""
    return {package: version(package) for package in packages}


def main(
    ways: dict[str, Way],
    versions: dict[str, str],
    refusals: tuple[type[BaseException], ...] = (),
) -> None:
    """Versions first, then one line per network and way; `--only` for a single network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="the name of one network")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    print(json.dumps({"versions": versions, "ways": list(ways)}), file=out)
    for network in NETWORKS:
        if only in (None, network.name):
            for name, way in ways.items():
                with quiet():
                    result = try_way(network, way, refusals)
                case = {"number": network.number, "network": network.name, "way": name}
                print(json.dumps(case | result), file=out)
