"""Models as a command line names them: an architecture of torchvision, or 'module:function'."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError
from fxquant.extras import needs_extra
from fxquant.overrides import near_misses


def model_named(name: str, classes: int | None = None) -> nn.Module:
    """The model: of torchvision with fresh weights, or what `module:function` returns.

    Modules are looked for in the current folder, too. `classes` is how many an architecture of
    torchvision tells apart, None for its own 1000.
    """
    if classes is not None and (classes < 1 or ":" in name):
        raise ConfigError(
            f"--classes {classes} is no number of classes of an architecture of torchvision"
        )
    if ":" in name:
        return _called(name)
    with needs_extra("vision"):
        from torchvision import models
    known = models.list_models(module=models)
    if name not in known:
        near = near_misses(name, known)
        raise ConfigError(
            f"torchvision has no architecture '{name}'{near}\n"
            "What to do: name one of torchvision, or 'module:function' that returns a model."
        )
    settings = {} if classes is None else {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # which takes a minute, and is overwritten
    model: nn.Module = models.get_model(name, weights=None, **settings)
    return model.eval()


def _called(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        model = getattr(module, function_name)()
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"'{name}' gives no model: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(model, nn.Module):
        raise ConfigError(f"'{name}' gives no model, but a {type(model).__name__}")
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with the weights of a file: safetensors, or what torch.save wrote of a
    state_dict. No code in the file is run.
    """
    weights = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(weights.get(key), dict):
            weights = weights[key]
    weights = {str(k).removeprefix("module."): v for k, v in weights.items()}
    others = [k for k, v in weights.items() if not isinstance(v, Tensor)]
    if others:
        raise ConfigError(f"{path} holds more than tensors: '{others[0]}'")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ConfigError(f"{path} does not fit the model: {' '.join(lines[:4])}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            with needs_extra("save"):
                from safetensors.torch import load_file
            return dict(load_file(path))
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # of many kinds, as files can be wrong
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} holds no weights that can be read: {text}") from error
    if not isinstance(weights, dict):
        raise ConfigError(f"{path} holds a {type(weights).__name__}, not a state_dict")
    return weights
