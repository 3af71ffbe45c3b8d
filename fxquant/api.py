"""What most users call: prepare, train, convert, explain."""

from __future__ import annotations

import copy
import fnmatch
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fxquant.config import QuantConfig
from fxquant.errors import CaptureError, ConfigError, StageError
from fxquant.graph.around import unwrap
from fxquant.graph.compare import check_capture, random_like
from fxquant.graph.modes import identities_asked_once
from fxquant.graph.network import IntegerNetwork
from fxquant.graph.tensors import copy_of, is_sharded
from fxquant.graph.trace import trace
from fxquant.kernels.kernel import KernelChoice, checked
from fxquant.observers import MinMax
from fxquant.overrides import near_misses
from fxquant.pipeline import (
    Stage,
    carry_over,
    need_prepared,
    note,
    note_left_alone,
    say_stage,
    stage_of,
)
from fxquant.recipes import CONVERT, CONVERT_LAYERS, prepare_recipe
from fxquant.sites.integer import IntegerOp

M = TypeVar("M", bound=nn.Module)


@contextmanager
def _collecting_garbage_later() -> Iterator[None]:
    """Hardly anything that a rewrite makes is garbage before it ends; looking for it again and
    again, among all the modules there are, would take a fifth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def prepare_qat(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    config: QuantConfig | None = None,
) -> fx.GraphModule:
    """A copy of `model` that trains with fake-quants and evaluates in exact integers.

    Train it in any loop: the ranges of activations follow the data in train(). In eval() it
    computes on the integer grid, bit for bit what `convert` of it will compute; until every
    range has seen data, eval() is the float network.

    Args:
        model: any module whose forward torch.fx can capture; it is not touched.
        example_inputs: the positional arguments of one call (or one tensor), needed where the
            forward asks for shapes; values do not matter, shapes and dtypes do.
        config: what to quantize and how; None for 8 bits everywhere.

    Raises:
        CaptureError: the forward depends on data or on unknown shapes; names the line.
        UnsupportedOperatorError: an operator has no integer form; names node, module, line.
        ConfigError: an override that matches nothing.
        StageError: `model` was prepared or converted before.
    """
    config = QuantConfig() if config is None else config
    return _prepare("prepare_qat", model, example_inputs, config)


def prepare_ptq(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    config: QuantConfig | None = None,
) -> fx.GraphModule:
    """A copy of a trained `model`, in eval(), that `calibrate` gives its ranges.

    Until then it is the float network; then it computes on the integer grid, bit for bit what
    `convert` of it will compute. It is what prepare_qat returns, too: it may be trained further.
    Batch norms are folded into the layers around them, whatever the config says of them.

    Args:
        model: any module whose forward torch.fx can capture; it is not touched.
        example_inputs: as prepare_qat takes them.
        config: what to quantize and how; None for 8 bits everywhere and ranges that hold all that
            was seen (calibrator=MinMax()).

    Raises: as prepare_qat does.
    """
    config = QuantConfig(calibrator=MinMax()) if config is None else config
    if isinstance(config, QuantConfig):
        config = replace(config, batch_norm="fold")
    return _prepare("prepare_ptq", model, example_inputs, config).eval()


@torch.inference_mode(False)  # whose tensors no loss could train
@_collecting_garbage_later()
@identities_asked_once()
def _prepare(
    name: str, model: nn.Module, example_inputs: Sequence[Any] | torch.Tensor | None,
    config: QuantConfig,
) -> fx.GraphModule:
    """In the name of the function that was called."""
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"{name} takes an nn.Module, got {say_stage(model)}.\n"
            f"What to do: hand it the model itself, such as {name}(Net())."
        )
    model, wrappers = unwrap(model)
    _need_float(name, model)
    if not isinstance(config, QuantConfig):
        raise ConfigError(f"config is a QuantConfig, got {config!r}")
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if example_inputs is not None and not isinstance(example_inputs, Sequence):
        raise ConfigError(
            "example_inputs are the arguments of one call, in a tuple, or one tensor, got "
            f"{example_inputs!r}"
        )
    if config.verify and example_inputs is None:
        raise ConfigError("verify=True needs example_inputs: they say what to run the graph on")
    leaves = _float_leaves(model, config)
    gm = trace(_copied(copy_of, model), example_inputs, leaves)
    if example_inputs is not None:
        reason = check_capture(gm, model, example_inputs)
        if reason is not None and config.verify:
            raise ConfigError(f"verify=True needs inputs that run in both modes: {reason}")
        if reason is not None:
            summary = "the graph is compared with the model"
            note_left_alone(gm, "check_capture", summary, reason)
    if wrappers:
        note(gm, "unwrap", "wrappers are taken off", f"taken out of {', '.join(wrappers)}")
    prepare_recipe(config, leaves).run(gm, random_like(example_inputs) if config.verify else None)
    return gm


@torch.inference_mode(False)
@_collecting_garbage_later()
def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The integer network of a prepared model: `convert(p)(x)` equals `p.eval()(x)`, bit for bit.

    Between a quantize at each input and a dequantize at each output there are integer tensors
    only, in either mode. `prepared` is not touched and trains on as if nothing had happened.

    Raises:
        StageError: `prepared` did not come from prepare_qat, or its parameters are sharded.
        UncalibratedError: it has not seen data in train() yet; names the first such value.
        AccumulatorError: a sum may leave its accumulator; names the channel.
        NonFiniteError: a parameter is NaN or infinite.
        CaptureError: pruning computes a weight, which a prepared network does not follow.
    """
    layers = isinstance(prepared, fx.GraphModule) and stage_of(prepared) is Stage.MIXED
    if not layers:
        need_prepared(prepared, "convert")
    if is_sharded(prepared):
        raise StageError(
            "convert takes a network that is whole, and parameters of this one are sharded.\n"
            "What to do: gather them on each rank (torch.distributed.checkpoint.state_dict."
            "get_model_state_dict with full_state_dict=True), load them into a network that "
            "prepare_qat makes anew, and convert that."
        )
    gm = _copied(copy.deepcopy, prepared).eval()
    (CONVERT_LAYERS if layers else CONVERT).run(gm)
    # a new module, which holds only what the integer graph names
    quantized = IntegerNetwork(gm, gm.graph, class_name=type(prepared).__name__)
    carry_over(gm, quantized)
    return quantized.eval()


def use_kernels(quantized: nn.Module, choice: KernelChoice) -> None:
    """Choose what `quantized` computes with, changed in place. Its integers are the same with each.

        "auto"      the quickest kernels that are exact on this machine: int8 where there are any
        "float32"   float kernels that hold integers exactly, as on any CPU
        "plain"     every operator as its record has it, in int64 and float64 where need be

    `audit` shows which kernel each operator has got, and why not a quicker one. The choice is kept
    by copies and pickles, and is no part of the state_dict.

    Raises:
        ConfigError: there are no such kernels, or no integer operator to choose them for.
    """
    known = checked(choice)
    operators = [module for module in quantized.modules() if isinstance(module, IntegerOp)]
    if not operators:
        raise ConfigError(
            f"{type(quantized).__name__} has no integer operators.\n"
            "What to do: hand in what convert returned."
        )
    for operator in operators:
        operator.use_kernels(known)


def _need_float(name: str, model: nn.Module) -> None:
    """Refuse what was prepared or converted before, whole or in part."""
    for path, module in model.named_modules():
        if isinstance(module, fx.GraphModule) and stage_of(module) is not Stage.FLOAT:
            part = f", and its '{path}' is" if path else ", got"
            raise StageError(
                f"{name} takes a float model{part} {say_stage(module)}.\n"
                "What to do: hand it the model as it was before."
            )


def _copied(copier: Callable[[M], M], model: M) -> M:
    """A copy; a CaptureError where weights are computed in a way that cannot be copied."""
    try:
        return copier(model)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {error}\n"
            "What to do: where a parametrization or pruning computes a weight, make that permanent "
            "first (torch.nn.utils.parametrize.remove_parametrizations, prune.remove)."
        ) from error


def _float_leaves(model: nn.Module, config: QuantConfig) -> frozenset[str]:
    """The module paths that `keep_float` names."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    found: set[str] = set()
    for pattern in config.keep_float:
        matches = fnmatch.filter(paths, pattern)
        if not matches:
            near = near_misses(pattern, paths)
            raise ConfigError(f"keep_float: no submodule matches '{pattern}'{near}")
        found.update(matches)
    for path in sorted(found):
        _refuse_half(path, model.get_submodule(path))
    chosen = {id(module) for path in found for module in _called(model.get_submodule(path))}
    return frozenset(
        path for path, module in model.named_modules(remove_duplicate=False) if id(module) in chosen
    )


def _refuse_half(path: str, module: nn.Module) -> None:
    """Codes have more bits than half precision, so what integers give is float32."""
    halves = [p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize < 4]
    if halves:
        raise ConfigError(
            f"keep_float: '{path}' computes in {halves[0]}, and what integers hand it in eval() is "
            "float32.\n"
            "What to do: prepare model.float(), and train it under torch.autocast."
        )


def _called(module: nn.Module) -> list[nn.Module]:
    """The module itself, or what a mere container holds."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [module]
    return [inner for child in module.children() for inner in _called(child)]
