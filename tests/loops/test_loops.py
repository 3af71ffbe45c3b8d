"""The prepared network is an ordinary module: what PyTorch offers for training works with it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import fxquant
from fxquant import LSQ, PACT, TQT, LSQPlus, Phase, PhaseSchedule, QuantConfig, Stages
from fxquant.errors import CaptureError, ConfigError, StageError, UncalibratedError
from tests import laws
from tests.loops.nets import data, net, state_hash

X, Y = data()
CONFIGS = {"observed": QuantConfig(), "learned": QuantConfig(fake_quant=LSQ())}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def train(prepared, steps=12, seed=0, autocast=None, recompute=False):
    """The loss of each step, of Adam on batches that `seed` draws."""
    prepared.train()
    optimizer = torch.optim.Adam(fxquant.parameter_groups(prepared), lr=1e-2, weight_decay=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=autocast is torch.float16)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        batch = torch.randperm(len(X), generator=generator)[:48]
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            x = X[batch]
            y = checkpoint(prepared, x, use_reentrant=False) if recompute else prepared(x)
            loss = F.cross_entropy(y.float(), Y[batch])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


# ------------------------------------------------------------------------ optimizers


def test_learned_scales_are_a_group_without_weight_decay():
    prepared = fxquant.prepare_qat(net(), config=CONFIGS["learned"])
    own, grids = fxquant.parameter_groups(prepared)
    names = {id(p): name for name, p in prepared.named_parameters()}
    assert all(names[id(p)].endswith(".step") for p in grids["params"])
    assert [names[id(p)] for p in own["params"]] == [name for name, _ in net().named_parameters()]
    assert len(own["params"]) + len(grids["params"]) == len(names)
    laws.settle(prepared, X)
    before = [p.detach().clone() for p in grids["params"]]
    optimizer = torch.optim.SGD([own, grids], lr=1.0, weight_decay=0.5)
    for p in prepared.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, grids["params"], strict=True))
    assert not torch.equal(prepared.get_parameter("0.weight"), net()[0].weight)


def test_a_network_without_learned_scales_has_an_empty_second_group():
    own, grids = fxquant.parameter_groups(fxquant.prepare_qat(net()))
    assert len(own["params"]) == 10
    assert grids["params"] == []
    with pytest.raises(StageError, match="parameter_groups takes what prepare_qat returned"):
        fxquant.parameter_groups(net())


LEARN = (LSQ(), LSQPlus(), PACT(), TQT(), Stages(learned=True))


@pytest.mark.parametrize("method", LEARN, ids=lambda method: type(method).__name__)
def test_each_number_of_a_grid_learns_at_a_share_of_what_it_is(method):
    """The first step of Adam moves every number by its rate, whatever its gradient is."""
    prepared = fxquant.prepare_qat(net(), config=QuantConfig(fake_quant=method))
    laws.settle(prepared, X)
    own, *grids = fxquant.parameter_groups(prepared, grid_rate=0.01)
    names = {id(p): name for name, p in prepared.named_parameters()}
    assert {id(p) for group in (own, *grids) for p in group["params"]} == set(names)
    assert sum(len(group["params"]) for group in (own, *grids)) == len(names)
    before = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    for p in prepared.parameters():
        p.grad = torch.full_like(p, 1e-3)
    torch.optim.AdamW([own, *grids], lr=0.5, weight_decay=9.0).step()
    for group in grids:
        (p,) = group["params"]
        name = names[id(p)]
        moved = (p.detach() - before[name]).abs()
        size = 1.0 if name.endswith("log_threshold") else float(before[name].abs().mean())
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * size), rtol=1e-2, atol=1e-7)


def test_rates_of_grids_need_a_number_and_grids_that_have_started():
    prepared = fxquant.prepare_qat(net(), config=CONFIGS["learned"])
    for rate in (0, -0.01, math.nan, math.inf, "0.01", True):
        with pytest.raises(ConfigError, match="grid_rate is a positive number"):
            fxquant.parameter_groups(prepared, rate)
    with pytest.raises(UncalibratedError, match="has seen no finite data"):
        fxquant.parameter_groups(prepared, 0.01)
    observed = fxquant.prepare_qat(net())  # nothing of it is learned
    assert len(fxquant.parameter_groups(observed, 0.01)) == 1


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@both
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer(make, config):
    prepared = fxquant.prepare_qat(net(), config=config).train()
    optimizer = make([p for group in fxquant.parameter_groups(prepared) for p in group["params"]])

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(X), Y)
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(8)]
    assert losses[-1] < losses[0]
    laws.assert_equal(fxquant.convert(prepared)(X), prepared.eval()(X))


def test_schedulers_accumulation_and_clipping():
    """Two halves of a batch, added up, are the whole, where nothing depends on the batch."""
    folded = QuantConfig(batch_norm="fold")
    gradients = []
    for parts in (1, 2):
        prepared = fxquant.prepare_qat(net(), config=folded)
        laws.settle(prepared, X)
        fxquant.set_phase(prepared, Phase(observe=False))
        prepared.train()
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
        for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True):
            (F.cross_entropy(prepared(x), y) / parts).backward()
        nn.utils.clip_grad_norm_(prepared.parameters(), 0.5)
        gradients.append([p.grad.clone() for p in prepared.parameters()])
        optimizer.step()
        schedule.step()
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------ copies and averages


@both
def test_a_copy_trains_on_as_the_original(config):
    prepared = fxquant.prepare_qat(net(), config=config)
    train(prepared, 3)
    other = copy.deepcopy(prepared)
    assert train(prepared, 3, seed=1) == train(other, 3, seed=1)
    assert state_hash(prepared.state_dict()) == state_hash(other.state_dict())


@both
def test_a_shallow_copy_shares_what_is_trained(config):
    prepared = fxquant.prepare_qat(net(), config=config)
    other = copy.copy(prepared)
    train(prepared, 2)
    quantized = fxquant.convert(other)
    laws.assert_equal(quantized(X), prepared.eval()(X))
    again = copy.copy(quantized).train()
    assert not again.training
    laws.assert_equal(again(X), quantized(X))


def test_pruning_that_a_network_does_not_follow_is_told():
    prepared = fxquant.prepare_qat(net())
    train(prepared, 1)
    layer = next(m for m in prepared.modules() if isinstance(m, nn.Conv2d))
    prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(CaptureError, match=r"cannot be copied[\s\S]*What to do: .*prune.remove"):
        fxquant.convert(prepared)
    prune.remove(layer, "weight")
    laws.assert_equal(fxquant.convert(prepared)(X), prepared.eval()(X))


@both
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_convert(config, use_buffers):
    prepared = fxquant.prepare_qat(net(), config=config)
    average = AveragedModel(
        prepared, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    for seed in range(4):
        train(prepared, 1, seed)
        average.update_parameters(prepared)
    update_bn([X], average)
    quantized = fxquant.convert(average.module)
    laws.assert_equal(quantized(X), average.eval()(X))
    assert not torch.equal(quantized(X), fxquant.convert(prepared)(X))


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (AveragedModel, "module"),
        (lambda p: torch.compile(p, backend="eager"), "_orig_mod"),
        (lambda p: AveragedModel(nn.DataParallel(p)), "module.module"),
    ],
)
def test_around_a_network_it_says_where_that_is(wrap, path):
    wrapper = wrap(fxquant.prepare_qat(net()))
    with pytest.raises(StageError, match=f"hand in the network inside, which is its '{path}'"):
        fxquant.convert(wrapper)
    assert isinstance(wrapper.get_submodule(path), torch.fx.GraphModule)


def test_synchronized_batch_norms_are_like_others_where_there_is_one_process():
    """Several train on GPUs only; eval() and convert are the same everywhere."""
    prepared = fxquant.prepare_qat(net())
    synchronized = fxquant.prepare_qat(nn.SyncBatchNorm.convert_sync_batchnorm(net()))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synchronized.modules()) == 2
    assert train(prepared, 4) == train(synchronized, 4)
    laws.assert_equal(fxquant.convert(synchronized)(X), prepared.eval()(X))


def test_hooks_see_ordinary_tensors():
    prepared, seen = fxquant.prepare_qat(net()).train(), []
    site = prepared.get_submodule("fxquant._4")
    site.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    site.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    prepared(X).sum().backward()
    assert seen == [(64, 8, 4, 4)] * 2


@both
def test_memory_formats_and_moves(config):
    prepared = fxquant.prepare_qat(net(), config=config)
    train(prepared, 2)
    expected = prepared.eval()(X)
    prepared = prepared.to("cpu").to(memory_format=torch.channels_last)
    laws.assert_equal(prepared(X.to(memory_format=torch.channels_last)), expected)
    assert prepared.get_parameter("4.weight").is_contiguous(memory_format=torch.channels_last)
    train(prepared, 2)
    laws.assert_equal(fxquant.convert(prepared)(X), prepared.eval()(X))


# ------------------------------------------------------------------------ precision and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_as_float32_does(dtype):
    """The losses lie as close to those of float32 as other draws of the batches put these."""
    exact = torch.tensor(train(fxquant.prepare_qat(net()), 25))
    half = torch.tensor(train(fxquant.prepare_qat(net()), 25, autocast=dtype))
    others = torch.tensor([train(fxquant.prepare_qat(net()), 25, seed) for seed in (1, 2, 3)])
    noise = (others - exact).square().mean().sqrt()
    assert (half - exact).square().mean().sqrt() < noise / 2
    assert half[-5:].mean() < half[:5].mean()


@both
def test_quantization_stays_in_float32_under_autocast(config):
    prepared = fxquant.prepare_qat(net(), config=config)
    train(prepared, 2, autocast=torch.bfloat16)
    for name, value in prepared.named_buffers():
        if "observer" in name or name.endswith(".scale"):
            assert value.dtype is torch.float32
    expected = prepared.eval()(X)
    with torch.autocast("cpu", torch.bfloat16):
        laws.assert_equal(prepared(X), expected)
        laws.assert_equal(fxquant.convert(prepared)(X), expected)


@both
@pytest.mark.parametrize("schedule", [{}, {"freeze_ranges": 2, "freeze_batch_norm": 3}])
def test_gradient_checkpointing_changes_nothing(config, schedule):
    """The forward that a backward runs again sees the same ranges and moves none."""
    states = []
    for recompute in (False, True):
        prepared = fxquant.prepare_qat(net(), config=config)
        phases = PhaseSchedule(prepared, **schedule)
        losses = []
        for seed in range(5):
            losses += train(prepared, 1, seed, recompute=recompute)
            phases.step()
        states.append((losses, state_hash(prepared.state_dict())))
    assert states[0] == states[1]


# ------------------------------------------------------------------------ torch.compile


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler, in torch 2.13
def test_compiled_it_has_no_graph_break_and_follows_its_phases():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    prepared = fxquant.prepare_qat(model).train()
    assert torch._dynamo.explain(prepared)(X).graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(prepared, backend="eager", fullgraph=True)  # a break is an error
    high = prepared.fxquant.quantize_input_1.output.observer.high
    observing, settled = Phase(round=False), Phase(observe=False, batch_statistics=False)
    for phase, moves in ((observing, True), (Phase(), True), (settled, False), (Phase(), True)):
        fxquant.set_phase(prepared, phase)
        before = high.clone()
        compiled(X * 9)
        assert bool(high != before) is moves
    torch._dynamo.reset()
