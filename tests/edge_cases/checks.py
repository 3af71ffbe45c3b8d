"""What the test of an edge case must show: kept, left alone or refused. Written once.

    kept         the function after every pass, and then the contract, in every recipe
    left_alone   the same, and the reason in the log, at the node
    refused      an error of fxquant's that says where and what to do
"""

from __future__ import annotations

import copy
import linecache
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fxquant
from fxquant import QuantConfig
from fxquant.errors import FxQuantError
from fxquant.graph.trace import trace
from fxquant.pipeline import Entry, Keeps, history
from fxquant.recipes import prepare_recipe
from tests import laws

IMAGE = (2, 4, 8, 8)


class Net(nn.Module):
    """Some members, and a forward that is handed in; batch norms have random statistics."""

    def __init__(self, forward: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = forward
        for name, member in members.items():
            setattr(self, name, member)
        settle_norms(self)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def settle_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, and random γ of either sign and β."""
    for bn in model.modules():
        if not isinstance(bn, _BatchNorm):
            continue
        if bn.running_mean is not None:
            bn.running_mean.normal_(0, 0.5)
            bn.running_var.uniform_(0.25, 2)
        if bn.affine:
            nn.init.normal_(bn.weight)
            nn.init.normal_(bn.bias)
    return model


def conv(c: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of its input."""
    return nn.Conv2d(c, c, kernel, padding=kernel // 2, **options)


class Result(NamedTuple):
    """A network with settled ranges, in eval(), and its integers."""

    prepared: fx.GraphModule
    quantized: fx.GraphModule


def kept(
    model: nn.Module,
    x: Any,
    *,
    example: bool = False,
    train: bool = True,
    keep_float: tuple[str, ...] = (),
    near: float | None = 0.2,
    configs: Mapping[str, QuantConfig] = laws.CONFIGS,
) -> dict[str, Result]:
    """Check that fxquant keeps `model` on `x`, a tensor or a tuple of arguments; the results.

    In float64 every pass keeps the function to 1e-10: in eval(), and in train() (`train`) as far
    as it says so. In float32 the prepared model is the float one to 1e-5 before it has seen
    data, its integers then stay `near` the float numbers, and the contract holds.
    `example` hands x to the capture, too.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    double, arguments = copy.deepcopy(model).double(), tuple(map(_double, inputs))
    gm = trace(copy.deepcopy(double), arguments if example else None, frozenset(keep_float))
    chosen = {name: replace(config, keep_float=keep_float) for name, config in configs.items()}
    _keep_the_function(double, gm, arguments, list(chosen.values()), train)
    return {
        name: contract(model, inputs, config, example, near) for name, config in chosen.items()
    }


def contract(
    model: nn.Module,
    inputs: tuple[Any, ...],
    config: QuantConfig,
    example: bool = False,
    near: float | None = None,
) -> Result:
    """Prepare, settle, convert; eval() before data is the float model, afterwards integers."""
    prepared = fxquant.prepare_qat(model, inputs if example else None, config)
    assert apart(run(prepared, inputs, False), run(model, inputs, False)) <= 1e-5
    laws.settle(prepared, *inputs)
    quantized = fxquant.convert(prepared)
    for scale in (1, 2):  # and beyond the ranges
        beyond = [v * scale if isinstance(v, Tensor) else v for v in inputs]
        laws.assert_equal(quantized(*beyond), prepared(*beyond))
    if near is not None and config.batch_norm == "train":
        trained = copy.deepcopy(model)  # its batch norms have moved with those of `prepared`
        state = prepared.state_dict()
        trained.load_state_dict({key: state[key] for key in trained.state_dict()})
        assert apart(run(prepared, inputs, False), run(trained, inputs, False)) <= near
    return Result(prepared, quantized)


def _double(value: Any) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floats else value


def _keep_the_function(
    model: nn.Module,
    gm: fx.GraphModule,
    inputs: tuple[Any, ...],
    configs: list[QuantConfig],
    train: bool,
) -> None:
    """Take copies of `gm`, captured from `model`, through the recipes; compare after each pass."""
    expected = run(model, inputs, training=False)
    laws.assert_close(run(gm, inputs, training=False), expected)
    at_first = run(model, inputs, training=True) if train else None
    if train:
        laws.assert_close(run(gm, inputs, training=True), at_first)
    compared: dict[tuple[str, ...], Any] = {}  # recipes begin alike: each beginning once
    for config in configs:
        ours, path, trained = copy.deepcopy(gm), (), at_first
        for step in prepare_recipe(config, frozenset(config.keep_float)).passes:
            step.run(ours)
            path = (*path, step.name)
            if path in compared:
                trained = compared[path]
                continue
            # also after those that round: without a range they do not
            laws.assert_close(run(ours, inputs, training=False), expected)
            if train and step.keeps is not Keeps.NOTHING:
                before, trained = trained, run(ours, inputs, training=True)
                if step.keeps is Keeps.BOTH_MODES:
                    laws.assert_close(trained, before)
            compared[path] = trained


def run(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> Any:
    """What `model`, which stays as it is, gives in that mode, always with the same random
    numbers; in training also the statistics of its batch norms afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(1)  # torch.manual_seed minds every device
        outputs = model.train(training)(*copy.deepcopy(inputs))
        moved = {key: b.clone() for key, (b, _) in buffers.items() if "running_" in key}
        for buffer, value in buffers.values():
            buffer.copy_(value)
    for module, mode in modes.items():
        module.training = mode
    return (outputs, [moved[key] for key in sorted(moved)]) if training else outputs


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference of two outputs, as a share of the largest number in `theirs`."""
    pairs = zip(laws.flat(ours), laws.flat(theirs), strict=True)
    shares = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-300))
        for a, b in pairs
        if isinstance(b, Tensor) and b.numel()
    ]
    return max(shares, default=0.0)


def left_alone(
    model: nn.Module, x: Any, step: str, node: str, reason: str, **options: Any
) -> dict[str, Result]:
    """Check that `model` is kept, and that the log of pass `step` has the reason at `node`."""
    results = kept(model, x, **options)
    logs = [entries(result.prepared, step) for result in results.values()]
    logs = [log for log in logs if log is not None]
    assert logs, f"no recipe has {step}"
    for left in logs:
        assert any(e.node == node and reason in e.text for e in left), left
    assert any(reason in fxquant.explain(result.prepared) for result in results.values())
    return results


def entries(gm: fx.GraphModule, step: str, changed: bool = False) -> tuple[Entry, ...] | None:
    """What pass `step` left alone in `gm`, or changed; None if it is not in the recipe."""
    for record in history(gm):
        if record.name == step:
            return record.changed if changed else record.left_alone
    return None


def changed_at(result: Result, step: str) -> list[str]:
    """The nodes at which pass `step` changed something."""
    return [entry.node for entry in entries(result.prepared, step, changed=True) or ()]


def refused(
    model: nn.Module,
    x: Any,
    *words: str,
    module: str,
    line: str | None,
    node: str | None = None,
    example: bool = False,
    **settings: Any,
) -> None:
    """Check that every recipe refuses `model`, and `explains` why."""
    inputs = x if isinstance(x, tuple) else (x,)
    for config in laws.CONFIGS.values():
        with pytest.raises(FxQuantError) as caught:
            fxquant.prepare_qat(model, inputs if example else None, replace(config, **settings))
        explains(caught.value, *words, module=module, line=line, node=node)


def explains(
    error: BaseException, *words: str, module: str, line: str | None, node: str | None = None
) -> None:
    """Check that an error names node, module path ("" at the top), the user's own line, which
    holds `line`, and a way out. None where there is no node yet, or no line of the user's.
    """
    message = str(error)
    assert isinstance(error, FxQuantError), message
    assert node is None or f"node '{node}'" in message, message
    assert (f"'{module}'" if module else "forward") in message, message
    assert "\nWhat to do: " in message, message
    assert all(word in message for word in words), message
    if line is not None:
        found = re.search(r"([^\s(]+\.py):(\d+)", message)
        assert found is not None, message
        assert line in linecache.getline(found[1], int(found[2])), message
