"""The callback of Lightning: what it does in a fit, and with all else that a trainer can do."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import LSQ, Phase, QuantConfig
from fxquant.errors import CaptureError, ConfigError, StageError, UncalibratedError
from tests import laws
from tests.loops.nets import data, net, state_hash

pl = pytest.importorskip("lightning.pytorch", reason="lightning is in the extra `lightning`")

from fxquant.integrations.lightning import QuantizationAwareTraining  # noqa: E402
from tests.integrations.modules import Classifier, loader, phases, trainer  # noqa: E402

# Lightning has a word of advice on small loaders, and so on
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*(isinstance.treespec|TreeSpec|LeafSpec)"),
]
ROOT = Path(__file__).parents[2]
X, Y = data(32, seed=5)
FROZEN = Phase(observe=False, batch_statistics=False)


class Watch(pl.Callback):
    """Writes down in which phase each batch is trained on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(phases(pl_module))


def fitted(callback, module=None, *others, **options):
    module = module or Classifier()
    trainer(callback, *others, **options).fit(module, loader(), loader())
    return module


# ------------------------------------------------------------------------ what it does


@pytest.mark.parametrize("config", [None, QuantConfig(fake_quant=LSQ())], ids=["plain", "lsq"])
def test_it_prepares_trains_and_converts(config):
    callback = QuantizationAwareTraining("net", config)
    module = Classifier()
    before = copy.deepcopy(module.net.state_dict())
    fitted(callback, module)
    laws.assert_equal(callback.quantized(X), module.eval()(X))
    assert set(before) < set(module.net.state_dict())
    assert not torch.equal(before["0.weight"], module.net.get_parameter("0.weight"))
    assert fxquant.audit(callback.quantized).rows


def test_each_epoch_has_its_phase():
    watch = Watch()
    callback = QuantizationAwareTraining("net", round=1, freeze_ranges=2, freeze_batch_norm=3)
    fitted(callback, None, watch, max_epochs=4)
    each = [Phase(round=False), Phase(), Phase(observe=False), FROZEN]
    assert watch.seen == [{phase} for phase in each for _ in range(4)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_the_optimizer(accumulate):
    watch = Watch()
    callback = QuantizationAwareTraining(
        "net", round=1, freeze_ranges=3, freeze_batch_norm=3, interval="step"
    )
    fitted(callback, None, watch, max_epochs=2, accumulate_grad_batches=accumulate)
    each = [Phase(round=False), Phase(), Phase(), FROZEN, FROZEN, FROZEN, FROZEN, FROZEN]
    expected = [{phase} for phase in each for _ in range(accumulate)]
    assert watch.seen == expected[:8]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(precision):
    callback = QuantizationAwareTraining("net", round=1)
    module = fitted(callback, precision=precision)
    laws.assert_equal(callback.quantized(X), module.eval()(X))
    scales = [b for n, b in module.net.named_buffers() if n.endswith("scale")]
    assert {scale.dtype for scale in scales} == {torch.float32}


# ------------------------------------------------------------------------ what else a trainer does


def test_testing_measures_the_integers():
    callback = QuantizationAwareTraining("net")
    module = Classifier()
    fit = trainer(callback)
    fit.fit(module, loader())
    (result,) = fit.test(module, loader(), verbose=False)
    x, y = data(64)
    found = callback.quantized(x).argmax(1)
    expected = torch.stack([(found[y == k] == k).float().mean() for k in range(3)]).mean()
    assert result["accuracy"] == pytest.approx(float(expected))


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_fit_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, interval):
    """At the end of an epoch: in the middle of one, Lightning begins a plain DataLoader anew,
    whatever it trains.
    """
    starts = {"round": 1, "freeze_ranges": 2, "freeze_batch_norm": 3}
    each = 1 if interval == "epoch" else 4

    def callback():
        scaled = {name: start * each for name, start in starts.items()}
        return QuantizationAwareTraining("net", interval=interval, **scaled)

    whole = fitted(callback(), max_epochs=4)
    stop = {"max_epochs": 2} if interval == "epoch" else {"max_epochs": 4, "max_steps": 8}
    first = trainer(callback(), **stop)
    first.fit(Classifier(), loader(), loader())
    first.save_checkpoint(tmp_path / "checkpoint")
    resumed, last = Classifier(), callback()
    trainer(last, max_epochs=4).fit(resumed, loader(), ckpt_path=tmp_path / "checkpoint")
    assert phases(resumed) == phases(whole) == {FROZEN}
    assert state_hash(resumed.state_dict()) == state_hash(whole.state_dict())
    laws.assert_equal(last.quantized(X), whole.eval()(X))


def test_a_checkpoint_is_tested_and_loaded(tmp_path):
    module = Classifier()
    fit = trainer(QuantizationAwareTraining("net"))
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "checkpoint")
    again = Classifier()
    trainer(QuantizationAwareTraining("net")).test(
        again, loader(), ckpt_path=tmp_path / "checkpoint", verbose=False
    )
    loaded = Classifier.load_from_checkpoint(
        tmp_path / "checkpoint", network=fxquant.prepare_qat(net()), weights_only=True
    )
    expected = module.eval()(X)
    laws.assert_equal(again.eval()(X), expected)
    laws.assert_equal(loaded.eval()(X), expected)
    laws.assert_equal(fxquant.convert(loaded.net)(X), expected)


def test_another_fit_trains_on():
    callback, module = QuantizationAwareTraining("net", QuantConfig(), round=1), Classifier()
    fit = trainer(callback, max_epochs=2)
    fit.fit(module, loader())
    first, network = callback.quantized, module.net
    fit.fit_loop.max_epochs = 3
    fit.fit(module, loader())
    assert module.net is network
    assert phases(module) == {Phase()}  # epoch 2: it has not begun anew
    laws.assert_equal(callback.quantized(X), module.eval()(X))
    assert not torch.equal(first(X), callback.quantized(X))


def test_validation_before_the_fit_is_that_of_the_float_network():
    module = Classifier().eval()
    expected = module(X)
    trainer(QuantizationAwareTraining("net")).validate(module, loader(), verbose=False)
    torch.testing.assert_close(module.eval()(X), expected)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_of_weights_beside_it_converts(use_buffers):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    callback = QuantizationAwareTraining("net", round=1)
    average = callbacks.EMAWeightAveraging(decay=0.5, use_buffers=use_buffers)
    module = fitted(callback, None, average)
    laws.assert_equal(callback.quantized(X), module.eval()(X))
    alone = fitted(QuantizationAwareTraining("net", round=1))
    assert not torch.equal(callback.quantized(X), alone.eval()(X))


# ------------------------------------------------------------------------ modules of other kinds


class TwoOptimizers(Classifier):
    """Optimizes by hand: two networks, an optimizer each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.head = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))

    def training_step(self, batch, _):
        x, y = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.head(self.net(x)), y))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.net, self.head)]


def test_two_networks_optimized_by_hand():
    both = [QuantizationAwareTraining(name, round=1) for name in ("net", "head")]
    module = TwoOptimizers()
    trainer(*both).fit(module, loader())
    module.eval()
    codes = module.net(X)
    laws.assert_equal(both[0].quantized(X), codes)
    laws.assert_equal(both[1].quantized(codes), module.head(codes))


class Sorts(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_captured_says_so_and_can_be_kept_in_float():
    def module():
        return Classifier(nn.Sequential(net(), Sorts()))

    with pytest.raises(CaptureError, match=r"in '1' at .*test_lightning.py:[0-9]+:"):
        fitted(QuantizationAwareTraining("net"), module())
    callback = QuantizationAwareTraining("net", QuantConfig(keep_float=("1",)))
    trained = fitted(callback, module())
    laws.assert_equal(callback.quantized(X), trained.eval()(X))


def test_a_network_deeper_in_the_module_and_one_that_was_compiled():
    module = Classifier(nn.ModuleDict({"body": torch.compile(net(), backend="eager")}))
    module.forward = lambda x: module.net["body"](x)
    callback = QuantizationAwareTraining("net.body")
    fitted(callback, module)
    laws.assert_equal(callback.quantized(X), module.eval()(X))


def test_one_that_is_prepared_already_trains_on():
    module = Classifier(fxquant.prepare_qat(net()))
    network, callback = module.net, QuantizationAwareTraining("net", round=1)
    fitted(callback, module)
    assert module.net is network
    laws.assert_equal(callback.quantized(X), module.eval()(X))


def test_one_that_is_prepared_and_compiled_stays_so():
    module = Classifier(torch.compile(fxquant.prepare_qat(net()), backend="eager"))
    network = module.net
    QuantizationAwareTraining("net").setup(trainer(), module, "fit")
    assert module.net is network


# ------------------------------------------------------------------------ mistakes


class Shares(Classifier):
    """A second path to a weight of the network."""

    def __init__(self):
        super().__init__()
        self.first = self.net[0]


class Replaces(Classifier):
    def setup(self, stage):
        self.net = net()


def frozen_from_the_start():
    return fitted(QuantizationAwareTraining("net", freeze_ranges=0))


MISTAKES = {
    "no path": (lambda: QuantizationAwareTraining(""), ConfigError, "no network alone"),
    "no interval": (
        lambda: QuantizationAwareTraining("net", interval="batch"),
        ConfigError, "'epoch' or 'step', got 'batch'",
    ),
    "no order": (
        lambda: QuantizationAwareTraining("net", round=3, freeze_ranges=2),
        ConfigError, "in this order",
    ),
    "a path that leads nowhere": (
        lambda: fitted(QuantizationAwareTraining("model")),
        ConfigError, "no network 'model'.*it holds 'net', 'accuracy'",
    ),
    "settings that come too late": (
        lambda: fitted(
            QuantizationAwareTraining("net", QuantConfig()), Classifier(fxquant.prepare_qat(net()))
        ),
        ConfigError, "'net' is prepared already",
    ),
    "shared weights": (
        lambda: fitted(QuantizationAwareTraining("net"), Shares()),
        ConfigError, "'first.weight' is also in 'net'",
    ),
    "another network in its place": (
        lambda: fitted(QuantizationAwareTraining("net"), Replaces()),
        StageError, "QuantizationAwareTraining of 'net' takes what prepare_qat returned",
    ),
    "eval": (
        lambda: fitted(QuantizationAwareTraining("net"), Classifier().eval()),
        ConfigError, r"'net' is in eval\(\)",
    ),
    "nothing seen": (frozen_from_the_start, UncalibratedError, "cannot stand still"),
    "processes of its own": (
        lambda: QuantizationAwareTraining("net").setup(
            trainer(strategy="ddp_spawn"), Classifier(), "fit"
        ),
        ConfigError, "processes of its own.*\n.*module.net = fxquant.prepare_qat",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.parametrize(("mistake", "error", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(mistake, error, says):
    with pytest.raises(error, match=says):
        mistake()


def test_a_network_that_is_not_called_is_converted_unverified():
    module = Classifier(fxquant.prepare_qat(net()))
    laws.settle(module.net, X)
    callback = QuantizationAwareTraining("net")
    module.forward = module.net.train().forward  # which no hook sees
    with pytest.warns(UserWarning, match="not verified"):
        fitted(callback, module)
    laws.assert_equal(callback.quantized(X), module.net.eval()(X))


def test_a_fit_that_is_over_already_converts_what_it_loads(tmp_path):
    first = trainer(QuantizationAwareTraining("net"))
    module = Classifier()
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "checkpoint")
    callback = QuantizationAwareTraining("net")
    with pytest.warns(UserWarning, match="not verified"):
        trainer(callback).fit(Classifier(), loader(), ckpt_path=tmp_path / "checkpoint")
    laws.assert_equal(callback.quantized(X), module.eval()(X))


def test_the_network_is_left_without_hooks():
    module = fitted(QuantizationAwareTraining("net"))
    assert not module.net._forward_pre_hooks
    copy.deepcopy(module.net)


@pytest.mark.slow
def test_on_two_processes(tmp_path):
    """Scales that stand still have no gradient: DDP has to look for them."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.integrations.parallel"),
            *("ddp_find_unused_parameters_true", str(tmp_path)),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert torch.load(tmp_path / "result") == {"agree": True, "equal": True}
