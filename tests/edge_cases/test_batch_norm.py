"""Edge cases 13 to 32: batch norms, folded or live."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from tests import laws
from tests.edge_cases.checks import (
    IMAGE,
    Net,
    changed_at,
    contract,
    conv,
    kept,
    left_alone,
    refused,
    run,
    settle_norms,
)

INPUT = torch.randn(IMAGE, generator=torch.Generator().manual_seed(3))
FOLDING = {name: laws.CONFIGS[name] for name in ("fold", "equalize")}


def net(norm=None, forward=None, **members):
    """conv, batch norm, relu, conv, unless told otherwise."""
    members = {"conv": conv(), "bn": norm or nn.BatchNorm2d(4), "last": conv(), **members}
    return Net(forward or (lambda s, x: s.last(s.bn(s.conv(x)).relu())), **members)


def folds(results, *norms):
    """The batch norms `norms`, and no others, are folded where the recipe folds."""
    for name in FOLDING:
        assert changed_at(results[name], "fold_bn") == list(norms)


def test_case_13_affine_false():
    """Kept: a batch norm without γ and β folds like any other."""
    folds(kept(net(nn.BatchNorm2d(4, affine=False)), INPUT), "bn")


@pytest.mark.parametrize("gamma", [0.0, -1.5, 1e-30], ids=str)
def test_case_14_gamma_zero_or_negative(gamma):
    """Kept: no scale becomes 0 or negative, and gradients stay finite."""
    model = net()
    model.bn.weight.data[:2] = gamma
    results = kept(model, INPUT)
    folds(results, "bn")
    for prepared, quantized in results.values():
        prepared.train()(INPUT).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in prepared.parameters())
        assert all(b.double().isfinite().all() for b in quantized.buffers())


def test_case_15_momentum_none():
    """Kept: with momentum=None the statistics go on being the mean of all batches."""
    model = net(nn.BatchNorm2d(4, momentum=None))
    folds(kept(model, INPUT), "bn")
    prepared = fxquant.prepare_qat(model)
    for _ in range(3):
        prepared.train()(INPUT)
    assert int(prepared.bn.num_batches_tracked) == 3


def test_case_15_track_running_stats_false():
    """Refused: without running statistics a batch norm normalises each batch by itself."""
    model = net(nn.BatchNorm2d(4, track_running_stats=False))
    words = ("no integer form", "keep_float=('bn',)")
    refused(model, INPUT, *words, node="bn", module="bn", line="s.last(s.bn(s.conv(x)).relu())")


def test_case_15_track_running_stats_false_in_float():
    """Kept: without running statistics a batch norm may stay in float."""
    model = net(nn.BatchNorm2d(4, track_running_stats=False))
    kept(model, INPUT, keep_float=("bn",))


@pytest.mark.parametrize(("eps", "momentum"), [(1e-3, 0.3), (0.5, 0.01)])
def test_case_16_own_eps_and_momentum(eps, momentum):
    """Kept: each batch norm has its own eps and momentum."""
    results = kept(net(nn.BatchNorm2d(4, eps=eps, momentum=momentum)), INPUT)
    folds(results, "bn")
    assert results["train"].prepared.bn.eps == eps
    prepared = fxquant.prepare_qat(net(nn.BatchNorm2d(4, eps=eps, momentum=momentum)))
    old, conv_ = prepared.bn.running_mean.clone(), prepared.conv
    prepared.train()(INPUT)
    batch = conv_(INPUT).mean((0, 2, 3))
    moved = (1 - momentum) * old + momentum * batch
    torch.testing.assert_close(prepared.bn.running_mean, moved, rtol=0, atol=0.05 * momentum)


def test_case_17_frozen_norm_as_the_model_has_it():
    """Kept: a batch norm that is in eval() and needs no gradient is so in the prepared model."""
    model = net().train()
    model.bn.eval().requires_grad_(False)
    prepared = fxquant.prepare_qat(model)
    assert prepared.training
    assert not prepared.bn.training
    assert not prepared.bn.weight.requires_grad
    _stays_frozen(prepared)


def test_case_17_frozen_norm_by_the_training_loop():
    """Kept: the loop that puts batch norms into eval() after train() goes on working."""
    results = kept(net(), INPUT)
    prepared = results["train"].prepared.train()
    for module in prepared.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    _stays_frozen(prepared)


def _stays_frozen(prepared):
    """Neither its statistics move, nor does it normalise by the batch."""
    before, bn = copy.deepcopy(prepared.bn.state_dict()), prepared.bn
    seen = []
    handle = bn.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    prepared(INPUT * 10)
    handle.remove()
    assert all(torch.equal(before[k], v) for k, v in bn.state_dict().items())
    ((x, y),) = seen
    fixed = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
    torch.testing.assert_close(y, fixed)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def test_case_17_frozen_norm_by_a_train_of_its_own():
    """Kept: a submodule whose own train() freezes its batch norm still does so."""
    model = settle_norms(nn.Sequential(Frozen(conv(), nn.BatchNorm2d(4)), nn.ReLU(), conv()))
    results = kept(model, INPUT)
    prepared = results["train"].prepared.train()
    before = prepared.state_dict()["0.1.running_mean"].clone()
    prepared(INPUT * 10)
    assert torch.equal(prepared.state_dict()["0.1.running_mean"], before)


def statistics(model):
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


FROZEN = fxquant.Phase(batch_statistics=False)


@pytest.mark.parametrize("after", [0, 2])
def test_case_17_norm_that_freezes_after_n_steps(after):
    """Kept: where a phase freezes batch norms the statistics stop, and γ and β train on."""
    prepared = fxquant.prepare_qat(net()).train()
    phases = fxquant.PhaseSchedule(prepared, freeze_batch_norm=after)
    for step in range(4):
        before = statistics(prepared)
        prepared(INPUT).square().sum().backward()
        moved = any(not torch.equal(v, before[k]) for k, v in statistics(prepared).items())
        assert moved is (step < after)
        phases.step()
    assert prepared.bn.weight.grad.abs().sum() > 0
    assert prepared.bn.bias.grad.abs().sum() > 0
    laws.assert_equal(fxquant.convert(prepared)(INPUT), prepared.eval()(INPUT))


def test_case_17_frozen_norm_stays_frozen_in_every_phase():
    """Kept: no phase thaws a batch norm that the model has frozen."""
    model = net().train()
    model.bn.eval().requires_grad_(False)
    prepared = fxquant.prepare_qat(model)
    fxquant.set_phase(prepared, fxquant.Phase())
    assert not prepared.bn.training
    assert not prepared.bn.weight.requires_grad
    for _ in range(3):
        _stays_frozen(prepared)


READ_ELSEWHERE = {
    "a sum": (lambda s, x: s.bn(y := s.conv(x)) + s.last(y), "'conv' is also read by 'last'"),
    "itself": (lambda s, x: s.bn(y := s.conv(x)) + y, "'conv' is also read by 'add'"),
    "an output": (lambda s, x: (s.bn(y := s.conv(x)), y), "'conv' is also read by 'output'"),
    "a view": (
        lambda s, x: (s.bn(y := s.conv(x)), y.flatten(1)),
        "'conv' is also read by 'flatten'",
    ),
}


@pytest.mark.parametrize("step", ["fold_bn", "fuse_conv_bn_relu"])
@pytest.mark.parametrize(("forward", "reason"), READ_ELSEWHERE.values(), ids=READ_ELSEWHERE)
def test_case_18_conv_also_read_elsewhere(forward, reason, step):
    """Left alone: a batch norm does not go into a conv whose output something else reads."""
    configs = laws.CONFIGS if step != "fold_bn" else FOLDING
    left_alone(net(forward=forward), INPUT, step, "bn", reason, configs=configs)


def test_case_19_one_conv_two_norms():
    """Left alone: neither of two batch norms may have the conv that both read."""
    model = net(forward=lambda s, x: s.bn(y := s.conv(x)) + s.bn2(y), bn2=nn.BatchNorm2d(4))
    left_alone(model, INPUT, "fold_bn", "bn", "'conv' is also read by 'bn2'")
    left_alone(model, INPUT, "fold_bn", "bn2", "'conv' is also read by 'bn'", configs=FOLDING)


def test_case_19_two_norms_in_a_row():
    """Kept: the second batch norm folds into what the first has become."""
    model = net(forward=lambda s, x: s.bn2(s.bn(s.conv(x))), bn2=nn.BatchNorm2d(4))
    folds(kept(model, INPUT), "bn", "bn2")


def test_case_20_shared_pair_called_twice():
    """Left alone: a conv and batch norm that are called twice are folded at neither call."""

    def forward(s, x):
        for _ in range(2):
            x = s.bn(s.conv(x)).relu()
        return s.last(x)

    model = net(forward=forward)
    for node in ("bn", "bn_1"):
        reason = "'conv.weight' is shared with another call"
        left_alone(model, INPUT, "fold_bn", node, reason, configs=laws.CONFIGS)


def test_case_20_shared_norm():
    """Kept: one batch norm behind two convs folds into both."""
    model = net(forward=lambda s, x: s.bn(s.conv(x)) + s.bn(s.last(x)))
    folds(kept(model, INPUT), "bn", "bn_1")


@pytest.mark.parametrize("tied", ["weight", "bias"])
def test_case_21_tied_weights(tied):
    """Left alone: a conv that shares its weight or bias with another keeps its batch norm."""
    model = net(forward=lambda s, x: s.bn(s.conv(x)) + s.bn2(s.last(x)), bn2=nn.BatchNorm2d(4))
    setattr(model.last, tied, getattr(model.conv, tied))
    results = left_alone(
        model, INPUT, "fold_bn", "bn", f"'conv.{tied}' is shared with another call"
    )
    assert changed_at(results["fold"], "fold_bn") == []


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_case_22_grouped_transposed_conv(groups, bias):
    """Kept: a batch norm folds along the output channels of each group."""
    layer = nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups, bias=bias)
    last = nn.Conv2d(8, 2, 1)
    folds(kept(net(nn.BatchNorm2d(8), conv=layer, last=last), INPUT), "bn")


LAYERS = {
    "depthwise": (conv(groups=4), 4),
    "grouped": (conv(groups=2), 4),
    "multiplier 2": (nn.Conv2d(4, 8, 3, groups=4), 8),
    "multiplier 2, dilated, no bias": (nn.Conv2d(4, 8, 3, groups=4, dilation=2, bias=False), 8),
}


@pytest.mark.parametrize(("layer", "channels"), LAYERS.values(), ids=LAYERS)
def test_case_23_groups(layer, channels):
    """Kept: grouped and depthwise convs take a batch norm in, channel by channel."""
    model = net(nn.BatchNorm2d(channels), conv=layer, last=nn.Conv2d(channels, 2, 1))
    folds(kept(model, INPUT), "bn")


@pytest.mark.parametrize("example", [False, True], ids=["rank unknown", "rank 3"])
def test_case_24_linear_over_three_dimensions(example):
    """Left alone: over three dimensions a batch norm counts another axis than the linear layer."""
    model = net(nn.BatchNorm1d(4), conv=nn.Linear(8, 8), last=nn.Linear(8, 3))
    reason = "'conv' may have more than two dimensions"
    left_alone(model, torch.randn(5, 4, 8), "fold_bn", "bn", reason, example=example)


def test_case_24_linear_over_two_dimensions():
    """Kept: over two dimensions a linear layer takes its batch norm in."""
    model = net(nn.BatchNorm1d(8), conv=nn.Linear(4, 8), last=nn.Linear(8, 3))
    folds(kept(model, torch.randn(6, 4), example=True), "bn")


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_case_25_norm_before_conv(groups):
    """Kept: a batch norm goes into the conv behind it where that does not pad."""
    model = net(
        forward=lambda s, x: s.last(s.bn(x.relu())), last=nn.Conv2d(4, 8, 3, groups=groups)
    )
    folds(kept(model, INPUT), "bn")


@pytest.mark.parametrize("padding", [1, (0, 1), "same"], ids=str)
def test_case_25_norm_before_a_conv_that_pads(padding):
    """Left alone: zeros that a conv pads with stand behind the batch norm, not before it."""
    model = net(
        forward=lambda s, x: s.last(s.bn(x.relu())), last=nn.Conv2d(4, 4, 3, padding=padding)
    )
    left_alone(model, INPUT, "fold_bn", "bn", "'last' pads with zeros")


class FactorizedReduce(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.conv_1 = nn.Conv2d(4, 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(4, 4, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(6, eps=eps)

    def forward(self, x):
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def test_case_26_norm_after_concat():
    """Kept: a batch norm goes through a concat into each conv, with its own eps."""
    model = settle_norms(nn.Sequential(conv(), FactorizedReduce(eps=0.3)))
    folds(kept(model, INPUT), "_1_bn")


def test_case_26_norm_after_concat_of_other_things():
    """Left alone: a concat of anything else than convs keeps its batch norm."""
    model = net(
        nn.BatchNorm2d(8), lambda s, x: s.bn(torch.cat([s.conv(x), x], 1)), last=nn.Identity()
    )
    left_alone(model, INPUT, "fold_bn", "bn", "no layer stands beside it")


CONCATS = {
    "the concat": (lambda s, x, y, z: (s.bn(v := torch.cat([y, z], 1)), v), "'cat' is also read"),
    "a conv": (lambda s, x, y, z: (s.bn(torch.cat([y, z], 1)), z.relu()), "'last' is also read"),
    "one conv twice": (lambda s, x, y, z: s.bn(torch.cat([y, y], 1)), "holds 'conv' twice"),
}


@pytest.mark.parametrize(("forward", "reason"), CONCATS.values(), ids=CONCATS)
def test_case_26_concat_also_read_elsewhere(forward, reason):
    """Left alone: a batch norm goes through a concat only if nothing else sees what it scales."""
    model = net(nn.BatchNorm2d(8), lambda s, x: forward(s, x, s.conv(x), s.last(x)))
    left_alone(model, INPUT, "fold_bn", "bn", reason)


LONE = {
    "max pool": lambda s, x: s.last(s.bn(F.max_pool2d(s.conv(x), 2)).relu()),
    "avg pool": lambda s, x: s.bn(F.avg_pool2d(s.conv(x), 3, 1, 1, False, False)),
    "a sum": lambda s, x: s.bn(s.conv(x) + x),
    "the input": lambda s, x: s.last(s.bn(x)),
    "relu": lambda s, x: s.bn(s.conv(x).relu()).relu(),
}


@pytest.mark.parametrize("forward", LONE.values(), ids=LONE)
def test_case_27_lone_norm(forward):
    """Left alone: a batch norm without a layer beside it is an integer scale and shift."""
    results = left_alone(net(forward=forward), INPUT, "fold_bn", "bn", "")
    for _, quantized in results.values():
        numbers = quantized.get_submodule("fxquant.bn")
        assert numbers.multiplier.shape == numbers.offset.shape == (4,)


def test_case_28_two_convs_before_a_norm():
    """Kept: of relu, conv, conv, batch norm only the last conv changes."""
    model = net(forward=lambda s, x: s.bn(s.last(s.conv(x.relu()))))
    results = kept(model, INPUT)
    folds(results, "bn")
    assert torch.equal(results["fold"].prepared.conv.weight, model.conv.weight)


@pytest.mark.parametrize("bias", [0.0, 3.0, -30.0], ids=str)
def test_case_29_conv_bias_before_norm(bias):
    """Kept: a conv's own bias goes through the batch norm behind it."""
    model = net()
    nn.init.constant_(model.conv.bias, bias)
    model.bn.running_mean += bias
    folds(kept(model, INPUT), "bn")


def test_case_30_sync_batch_norm():
    """Kept: a synchronized batch norm is one like any other."""
    folds(kept(net(nn.SyncBatchNorm(4)), INPUT), "bn")


def test_case_30_synchronized_after_preparing():
    """Kept: `convert_sync_batchnorm` works on a prepared model, too."""
    prepared = kept(net(), INPUT)["train"].prepared
    expected = prepared(INPUT)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(prepared).eval()
    assert isinstance(synchronized.bn, nn.SyncBatchNorm)
    laws.assert_equal(synchronized(INPUT), expected)
    laws.assert_equal(fxquant.convert(synchronized)(INPUT), expected)


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e-38], ids=str)
def test_case_31_tiny_variance(variance):
    """Kept: a channel that hardly varies has finite numbers."""
    model = net()
    model.bn.running_var[:2] = variance
    for _, quantized in kept(model, INPUT, near=None).values():
        assert all(b.double().isfinite().all() for b in quantized.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_case_31_half_precision(dtype):
    """Kept: a network in half precision is prepared and converted as it is, to float32 outputs."""
    model, x = net().to(dtype), INPUT.to(dtype)
    result = contract(model, (x,), laws.CONFIGS["train"])
    assert result.prepared.conv.weight.dtype is dtype
    assert result.prepared.eval()(x).dtype is torch.float32
    folded = fxquant.prepare_qat(model, config=laws.CONFIGS["equalize"]).eval()
    exact = copy.deepcopy(model).double().eval()(x.double())
    error = (folded(x).double() - exact).abs().max() / exact.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_case_31_batch_of_one_pixel():
    """Kept: a single value per channel works in eval(), and fails in train() as in torch."""
    model = net(forward=lambda s, x: s.bn(s.conv(x)), conv=nn.Conv2d(4, 4, 8))
    x = INPUT[:1]
    prepared = fxquant.prepare_qat(model)
    torch.testing.assert_close(prepared.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        prepared.train()(x)


def test_case_31_batch_of_one_pixel_as_an_example():
    """Kept: example inputs that the model cannot be trained on are compared in eval() alone."""
    model = net(forward=lambda s, x: s.bn(s.conv(x)), conv=nn.Conv2d(4, 4, 8))
    prepared = fxquant.prepare_qat(model, INPUT[:1])
    torch.testing.assert_close(prepared.eval()(INPUT[:1]), model.eval()(INPUT[:1]))
    text = fxquant.explain(prepared)
    assert "left alone  the model: Net.forward cannot run on the example inputs in train()" in text
    assert "Expected more than 1 value per channel" in text


def test_case_32_switching_modes():
    """Kept: train() and eval() change the mode and nothing else."""
    model = net(
        nn.BatchNorm2d(4, eps=1e-2, momentum=0.7),
        lambda s, x: s.last(s.drop(s.bn(s.conv(x)))),
        drop=nn.Dropout(0.3),
    )
    for prepared, _ in kept(model, INPUT).values():
        state, text = copy.deepcopy(prepared.state_dict()), repr(prepared)
        before = run(prepared, (INPUT,), training=True)
        for _ in range(3):
            prepared.train().eval()
        assert repr(prepared) == text
        assert all(torch.equal(state[k], v) for k, v in prepared.state_dict().items())
        laws.assert_equal(run(prepared, (INPUT,), training=True), before)


def test_case_32_switching_modes_while_norms_are_frozen():
    """Kept: neither eval() nor a change of mode ends a phase or moves a number of the norm."""
    model = net(nn.BatchNorm2d(4, eps=1e-2, momentum=0.7))
    prepared = fxquant.prepare_qat(model).train()
    prepared(INPUT)
    fxquant.set_phase(prepared, FROZEN)
    before = statistics(prepared)
    for _ in range(3):
        prepared.eval()(INPUT)
        prepared.train().eval().train()(INPUT)
        assert prepared.fxquant.conv.phase == FROZEN
        assert all(torch.equal(v, before[k]) for k, v in statistics(prepared).items())
        assert prepared.bn.training
        assert (prepared.bn.eps, prepared.bn.momentum) == (1e-2, 0.7)
        assert prepared.bn.track_running_stats
