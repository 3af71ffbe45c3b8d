"""Batch norms whose class adds to torch's: in the graph they are torch's, and what was added."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import CaptureError
from fxquant.graph.trace import trace
from tests.edge_cases.checks import IMAGE, Net, changed_at, conv, kept

FOLD = {"fold": fxquant.QuantConfig(batch_norm="fold")}
INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))


class Activated(nn.BatchNorm2d):
    """As timm writes it: torch's forward once more, then an activation."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.act = nn.Hardtanh(-1, 1)

    def forward(self, x):
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
        return self.act(x)


class Twice(nn.BatchNorm2d):
    """Asks its class's own forward, and not only once."""

    def forward(self, x):
        return super().forward(F.relu(super().forward(x)))


class Same(nn.BatchNorm2d):
    """Nothing of its own."""


class Frozen(nn.BatchNorm2d):
    """Its statistics never move."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Other(nn.BatchNorm2d):
    """Counts batches, but normalises otherwise."""

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 0.5
        )


def net(norm):
    return Net(lambda s, x: s.last(s.bn(s.conv(x))), conv=conv(), bn=norm, last=conv())


@pytest.mark.parametrize("make", [Activated, Same, Twice, Frozen])
def test_kept(make):
    """In both modes, after every pass, and to the integers; statistics move as they did."""
    kept(net(make(4)), INPUT, example=True)


def test_in_the_graph_it_is_torchs_own():
    model = net(Activated(4, eps=0.01))
    gm = trace(model)
    called = [n.target for n in gm.graph.nodes if n.op == "call_module"]
    kinds = [type(gm.get_submodule(path)) for path in called]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Hardtanh, nn.Conv2d]
    assert gm.bn.eps == 0.01
    assert list(dict(gm.named_parameters())) == list(dict(net(Activated(4)).named_parameters()))


def test_it_folds_as_any_other():
    for result in kept(net(Activated(4)), INPUT, configs=FOLD).values():
        assert changed_at(result, "fold_bn") == ["bn"]


def test_the_model_keeps_its_class():
    model = net(Activated(4))
    fxquant.prepare_qat(model)
    assert type(model.bn) is Activated


def test_batches_are_counted_once():
    prepared = fxquant.prepare_qat(net(Activated(4))).train()
    prepared(INPUT)
    assert prepared.bn.num_batches_tracked == 1


def test_one_that_counts_and_normalises_otherwise_is_refused():
    with pytest.raises(CaptureError, match="writes to 'bn.num_batches_tracked'"):
        fxquant.prepare_qat(net(Other(4)))
