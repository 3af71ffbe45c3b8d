"""What is written while a network trains: to TensorBoard's own writer, and as a plot."""

import copy
import os
import pickle
import sys
import threading

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import ConfigError, MissingExtraError, StageError
from fxquant.see.training_log import Quantizers, TrainingLog, _moved
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "sigmoid", head=True)


class Written:
    """A writer that remembers."""

    def __init__(self):
        self.scalars, self.histograms = {}, {}

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag, values, global_step):
        self.histograms[tag, global_step] = values


def train(log, prepared, steps=5, scale=1.0):
    for step in range(steps):
        loss = prepared.train()(scale * SPEC.inputs(seed=step)).square().mean()
        log.step(step, loss=loss.item())


@pytest.fixture
def prepared():
    return fxquant.prepare_qat(SPEC.build(), SPEC.inputs())


def test_what_is_written_when(prepared):
    writer = Written()
    with TrainingLog(prepared, writer, every=2) as log:
        train(log, prepared)
    assert [step for tag, step in writer.scalars if tag == "training/loss"] == [0, 1, 2, 3, 4]
    assert [step for tag, step in writer.scalars if tag == "scale/steps_0"] == [0, 2, 4]
    quantizer = prepared.get_submodule("fxquant.steps_0").output
    low, high = (writer.scalars[f"range/steps_0/{end}", 4] for end in ("low", "high"))
    assert high - low == pytest.approx(255 * writer.scalars["scale/steps_0", 4])
    assert writer.scalars["scale/steps_0", 4] == pytest.approx(float(quantizer.qparams.scale))
    names = {tag for tag, _ in writer.histograms}
    assert names == {"quantizers/scales", "quantizers/ranges", "quantizers/saturated"}
    assert len(writer.histograms["quantizers/scales", 4]) == len(log.quantizers[-1].scales)


def test_saturation_by_hand():
    """A range of about -1 … 1 and the values -3, -1, 1, 3: half of them are cut, in both modes
    of a range.
    """
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    writer = Written()
    log = TrainingLog(prepared, writer, every=1)
    prepared.train()(torch.tensor([[-1.0], [1.0]]))
    log.step(0)
    prepared(torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]))
    log.step(1)
    assert writer.scalars["saturated/quantize_input_1", 1] == 0.5
    fxquant.set_phase(prepared, fxquant.Phase(observe=False))
    prepared(torch.tensor([[-9.0], [0.0], [0.5], [9.0], [9.0]]))
    log.step(2)
    assert writer.scalars["saturated/quantize_input_1", 2] == 0.6


def test_training_is_the_same_with_it_and_without():
    outputs = []
    for watched in (True, False):
        torch.manual_seed(0)
        prepared = fxquant.prepare_qat(SPEC.build(), SPEC.inputs())
        log = TrainingLog(prepared, every=1)
        if not watched:
            log.close()
        train(log, prepared, 3)
        outputs.append(prepared.eval()(SPEC.inputs(seed=9)))
    assert torch.equal(*outputs)


def test_a_watched_network_is_copied_without_its_log(prepared):
    """As convert copies it in the middle of a training; a writer has threads and locks."""
    writer = Written()
    writer.lock = threading.Lock()
    log = TrainingLog(prepared, writer, every=1)
    train(log, prepared, 1)
    seen = len(writer.scalars)
    for copied in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        copied.train()(9 * SPEC.inputs())
    assert torch.equal(fxquant.convert(prepared)(SPEC.inputs()), prepared.eval()(SPEC.inputs()))
    assert len(writer.scalars) == seen
    train(log, prepared, 2)
    assert len(writer.scalars) > seen


def test_scales_are_drawn_beside_the_first_that_was_seen():
    first = Quantizers(0, {"a": 2.0}, {}, {})
    second = Quantizers(1, {"a": 3.0, "b": 4.0}, {}, {})
    third = Quantizers(2, {"a": 1.0, "b": 6.0}, {}, {})
    assert _moved([first, second, third]) == [[1.0], [1.5, 1.0], [0.5, 1.5]]


def test_it_lets_go(prepared):
    with TrainingLog(prepared):
        assert any(m._forward_hooks for m in prepared.modules())
    assert not any(m._forward_hooks for m in prepared.modules())


def test_it_takes_tensorboards_writer(prepared, tmp_path):
    tensorboard = pytest.importorskip(
        "torch.utils.tensorboard", reason="tensorboard is in the extra `see`"
    )
    with tensorboard.SummaryWriter(tmp_path) as writer, TrainingLog(prepared, writer) as log:
        train(log, prepared)
    (events,) = tmp_path.iterdir()
    assert events.stat().st_size > 1000


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_plot(prepared, ending, start, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `see`")
    log = TrainingLog(prepared, every=2)
    train(log, prepared)
    log.plot(tmp_path / f"training.{ending}")
    assert (tmp_path / f"training.{ending}").read_bytes().startswith(start)
    assert len(os.listdir(tmp_path)) == 1


def test_a_plot_of_nothing_yet(prepared, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `see`")
    TrainingLog(prepared).plot(tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_without_matplotlib_the_extra_is_named(prepared, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxquant\[see\]'"):
        TrainingLog(prepared).plot(tmp_path / "training.png")
    assert not os.listdir(tmp_path)


def test_wrong_uses_are_refused(prepared, tmp_path):
    with pytest.raises(StageError, match="TrainingLog takes what prepare_qat returned"):
        TrainingLog(SPEC.build())
    with pytest.raises(ConfigError, match="every is a number of steps, at least 1, got 0"):
        TrainingLog(prepared, every=0)
    with pytest.raises(ConfigError, match="writer is a SummaryWriter, or like it, got 'runs'"):
        TrainingLog(prepared, "runs")
    log = TrainingLog(prepared)
    with pytest.raises(ConfigError, match=r"loss is no number but a Tensor of shape \(2,\)"):
        log.step(0, lr=0.1, loss=torch.ones(2))
    assert log.scalars == {}
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        TrainingLog(prepared).plot(tmp_path / "training.html")
