"""What is always true. Written once, run on every listed pass and on both recipes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import assume
from torch import Tensor, fx, nn

from fxquant import QuantConfig
from fxquant.errors import CaptureError
from fxquant.graph.trace import trace
from fxquant.pipeline import Keeps, Pass, Stage
from fxquant.recipes import CONVERT, CONVERT_LAYERS, prepare_recipe
from tests.strategies import NetSpec

CONFIGS = {
    "train": QuantConfig(),
    "fold": QuantConfig(batch_norm="fold"),
    "equalize": QuantConfig(batch_norm="fold", equalize=True),
}
# these move an offset, or what rounding adds on average: eval() is the float network but nearly
NEARLY = {
    "correct": QuantConfig(
        batch_norm="fold", equalize=True, absorb_high_bias=True, correct_bias=True
    ),
}


DYNAMIC = QuantConfig(mode="dynamic")


def all_passes(config: QuantConfig) -> tuple[Pass, ...]:
    """Those of both recipes."""
    last = CONVERT if config.mode == "static" else CONVERT_LAYERS
    return (*prepare_recipe(config, frozenset()).passes, *last.passes)


def step_and_config(kind: type[Pass]) -> tuple[Pass, QuantConfig]:
    """A pass as a recipe makes it, and the configuration of that recipe."""
    for config in (CONFIGS["train"], NEARLY["correct"], DYNAMIC):
        for step in all_passes(config):
            if type(step) is kind:
                return step, config
    raise AssertionError(f"'{kind.name}' is in no recipe")


def graph_before(step: Pass, model: nn.Module, config: QuantConfig) -> fx.GraphModule:
    """A copy of `model` taken as far as the recipe goes before `step`; observed ranges settle
    on random data where the stage has them.
    """
    gm = capture(model)
    for earlier in all_passes(config):
        if type(earlier) is type(step):
            return gm
        earlier.run(gm)
        if earlier.gives is Stage.FAKE_QUANT:
            settle(gm)
    raise AssertionError(f"'{step.name}' is in no recipe")


def capture(model: nn.Module) -> fx.GraphModule:
    """The captured copy; a network that overwrites memory others view is honestly refused."""
    try:
        return trace(copy.deepcopy(model))
    except CaptureError as error:
        assume("overwrites memory" not in str(error))
        raise


def settle(gm: nn.Module, *inputs: Tensor) -> None:
    """Let ranges see two batches, as training would; then eval()."""
    gm.train()
    spec = getattr(gm, "spec", None)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for seed in range(2):
            gm(*(inputs or (spec.inputs(seed=seed),)))
    gm.eval()


def flat(outputs: Any) -> list[Any]:
    """The leaves of a nested output."""
    found: list[Any] = []
    fx.node.map_aggregate(outputs, found.append)
    return found


def assert_close(ours: Any, theirs: Any) -> None:
    """Same structure, tensors within 1e-10 (they are float64)."""
    assert len(flat(ours)) == len(flat(theirs))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Same structure, tensors equal bit for bit."""
    assert len(flat(ours)) == len(flat(theirs))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def keeps_the_function(step: Pass, spec: NetSpec, config: QuantConfig) -> None:
    """No output changes in the modes in which the pass says that it keeps the function."""
    gm = graph_before(step, spec.build().double(), config)
    x = spec.inputs().double()
    before = copy.deepcopy(gm)
    step.run(gm)
    keeps_values(gm, before, x, step.keeps)


def keeps_values(gm: fx.GraphModule, before: fx.GraphModule, x: Tensor, keeps: Keeps) -> None:
    """The same outputs in eval(), and in train() with the same random numbers if said so."""
    assert_close(gm.eval()(x), before.eval()(x))
    if keeps is Keeps.BOTH_MODES:
        assert_close(_in_training(gm, x), _in_training(before, x))


def _in_training(gm: fx.GraphModule, x: Tensor) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return copy.deepcopy(gm).train()(x)


def twice_is_once(step: Pass, spec: NetSpec, config: QuantConfig) -> None:
    """A second run changes neither the code nor, beyond what it counts as settled, a weight."""
    gm = graph_before(step, spec.build().double(), config)
    step.run(gm)
    code, state = gm.code, {k: v.clone() for k, v in gm.state_dict().items()}
    again = step.run(gm)
    assert gm.code == code
    assert step.name == "equalize_cross_layer" or again.changed == ()
    for name, value in gm.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-2, atol=1e-6)


def leaves_a_sound_graph(step: Pass, spec: NetSpec, config: QuantConfig) -> None:
    """Nothing unused is left among the sites, and no parameter name of the user is lost."""
    model = spec.build()
    gm = graph_before(step, model, config)
    names = set(gm.state_dict())
    step.run(gm)
    called = {str(node.target) for node in gm.graph.nodes}
    sites = getattr(gm, "fxquant", nn.Module())
    assert {f"fxquant.{name}" for name, _ in sites.named_children()} <= called
    gone = {name for name in names - set(gm.state_dict()) if not name.startswith("fxquant.")}
    folded = {name for name in gone if name.rsplit(".", 1)[0] in _norms(model)}
    assert step.name in ("lower_to_integer", "lower_layers") or gone == folded


def _norms(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
