"""What is prepared, converted and let go is gone."""

import gc
import weakref

import pytest
import torch

import fxquant
from tests.strategies import chain


def go_round(spec):
    """A network prepared, seen, converted and run; only weak references to all of it."""
    model, x = spec.build(), spec.inputs(2)
    prepared = fxquant.prepare_qat(model, x).train()
    prepared(x).sum().backward()
    quantized = fxquant.convert(prepared.eval())
    quantized(x)
    return [weakref.ref(kept) for kept in (model, prepared, quantized)]


def tensors():
    gc.collect()
    return sum(issubclass(type(kept), torch.Tensor) for kept in gc.get_objects())


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_memory_does_not_grow(rounds):
    spec = chain("conv", "bn", "relu", "conv", head=True)
    go_round(spec)
    before = tensors()
    for _ in range(rounds):
        references = go_round(spec)
        gc.collect(0)
    assert tensors() <= before  # fewer, where caches of other tests let go
    assert all(reference() is None for reference in references)
