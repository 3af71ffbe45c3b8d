"""Networks that once broke a promise. Each is kept right, or refused with a way out."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import CaptureError, ShapeError, UnsupportedOperatorError, VerifyError
from tests import laws

IMAGE = (2, 4, 8, 8)


class Net(nn.Module):
    """Some layers, and a forward that is handed in."""

    def __init__(self, forward, **members):
        super().__init__()
        self.function = forward
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.p = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("k", torch.randn(1, 4, 1, 1))
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x):
        return self.function(self, x)


def promise(model, x=None, config=None, example_inputs=None):
    """Prepared, settled, converted: eval() before data is the float model, then the contract."""
    x = torch.randn(IMAGE) if x is None else x
    expected = copy.deepcopy(model).eval()(x)
    prepared = fxquant.prepare_qat(model.eval(), example_inputs, config)
    torch.testing.assert_close(prepared(x), expected)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    return prepared, quantized


class MonteCarlo(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, 0.5, True)


class Sine(nn.Identity):
    def forward(self, x):
        return torch.sin(x)


@pytest.mark.parametrize("module", [MonteCarlo(), Sine()])
def test_a_subclass_of_an_identity_is_what_its_forward_says(module):
    with pytest.raises(UnsupportedOperatorError):
        fxquant.prepare_qat(nn.Sequential(nn.Conv2d(4, 4, 1), module))


class Gain(nn.Module):
    gain = 1.0

    def forward(self, x):
        return x if self.gain == 1.0 else x * self.gain


def test_an_identity_that_changes_its_mind_is_noticed():
    prepared, _ = promise(nn.Sequential(nn.Conv2d(4, 4, 1), Gain(), nn.Conv2d(4, 4, 1)))
    prepared.get_submodule("1").gain = 2.0
    with pytest.raises(VerifyError, match="no integer value"):
        fxquant.convert(prepared)


@pytest.mark.parametrize(
    "view", [lambda x: x.view(torch.int32), lambda x: x.view(dtype=torch.int32)]
)
def test_reading_the_bits_of_other_numbers_is_no_move(view):
    with pytest.raises(UnsupportedOperatorError, match="view"):
        fxquant.prepare_qat(Net(lambda s, x: view(s.a(x))))


KEPT = {
    "dropout by keyword": lambda s, x: s.b(s.drop(input=s.a(x))),
    "flatten by keyword": lambda s, x: torch.flatten(input=s.a(x), start_dim=1),
    "relu by keyword": lambda s, x: s.b(s.relu(input=s.a(x))),
    "constant moved": lambda s, x: s.a(x) + s.p[None].expand(1, 4, 1, 1),
    "in place after dropout": lambda s, x: (
        s.b(y := s.a(x)) + F.relu(F.dropout(y, 0.3, s.training), inplace=True) + y
    ),
    "in place on reshape_as": lambda s, x: (y := s.a(x)).relu_() + s.b(y.reshape_as(x)),
    "buffers computed with": lambda s, x: s.a(x) + s.k[:, :, :, :],
    "pad with a value": lambda s, x: F.pad(s.a(x), (1, 1, 0, 0), value=7.0),
    "regrouped sums": lambda s, x: s.a(x) + (s.b(x) + x),
}


@pytest.mark.parametrize("forward", KEPT.values(), ids=KEPT)
def test_kept(forward):
    promise(Net(forward, drop=nn.Dropout(), relu=nn.ReLU(inplace=True)))


def test_no_float_is_moved_around_inside():
    _, quantized = promise(Net(KEPT["constant moved"]))
    assert [n.op for n in quantized.graph.nodes].count("call_method") == 0


def no_grad_inside(s, x):
    with torch.no_grad():
        y = s.a(x)
    return s.b(y)


def noise_at_capture(s, x):
    return s.a(x) + torch.randn(8) if s.training else s.a(x)


def coin_at_capture(s, x):
    return s.a(x) if s.training and random.random() < 0.5 else s.b(x)


def writes_a_buffer(s, x):
    if s.training:
        s.k.mul_(0.9)
    return s.a(x) + s.k


def norm_in_eval_only(s, x):
    y = s.a(x)
    return s.b(y) if s.training else s.b(s.bn(y))


REFUSED = {
    "no_grad inside": (no_grad_inside, "no_grad"),
    "noise at capture": (noise_at_capture, "random numbers"),
    "coin at capture": (coin_at_capture, "random numbers"),
    "writes a buffer": (writes_a_buffer, "writes to 'k'"),
    "norm in eval only": (norm_in_eval_only, "keeps statistics"),
    "an overwritten view": (
        lambda s, x: (v := (y := s.a(x)).expand_as(x)) + y.relu_() + v,
        "overwrites memory",
    ),
}


@pytest.mark.parametrize(("forward", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(forward, words):
    with pytest.raises(CaptureError, match=f"(?s){words}.*What to do"):
        fxquant.prepare_qat(Net(forward, bn=nn.BatchNorm2d(4)))


def test_hooks_of_layers_are_part_of_the_function():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model[0].register_forward_hook(lambda m, args, y: y.relu())
    promise(model)


def test_hooks_of_the_model_itself_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.register_forward_pre_hook(lambda m, args: None)
    with pytest.raises(CaptureError, match="forward hooks: register them on what prepare_qat"):
        fxquant.prepare_qat(model)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def test_a_train_of_its_own_is_refused():
    with pytest.raises(CaptureError, match=r"overrides train\(\)"):
        fxquant.prepare_qat(Frozen(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))


def test_a_train_of_its_own_inside_works():
    model = nn.Sequential(Frozen(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.ReLU())
    prepared = fxquant.prepare_qat(model)
    before = model[0][1].running_mean.clone()
    prepared.train()(torch.randn(IMAGE))
    assert torch.equal(prepared.state_dict()["0.1.running_mean"], before)


def test_the_mode_of_a_submodule_is_its_own():
    inner = Net(lambda s, x: F.dropout(s.a(x), 0.9, s.training))
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(4, 4, 1), inner)).train()
    prepared.get_submodule("1").eval()
    x = torch.randn(IMAGE)
    assert (prepared(x) == 0).float().mean() < 0.1


def test_what_training_reads_stays_live():
    prepared = fxquant.prepare_qat(Net(lambda s, x: (s.a(x), s.p * 2 if s.training else None)))
    prepared.load_state_dict(
        {k: torch.zeros_like(v) for k, v in prepared.state_dict().items()}, assign=True
    )
    assert prepared.train()(torch.randn(IMAGE))[1].abs().max() == 0


def test_decisions_on_shapes_are_guarded():
    model = Net(lambda s, x: s.b(s.a(x) if x.shape[0] > 2 else x))
    prepared = fxquant.prepare_qat(model.eval(), torch.randn(4, 4, 8, 8))
    prepared(torch.randn(3, 4, 8, 8))
    with pytest.raises(ShapeError, match="captured for other shapes"):
        prepared(torch.randn(1, 4, 8, 8))


def test_what_a_trace_does_not_show_is_found_by_running_it():
    model = Net(lambda s, x: s.a(x if torch.is_tensor(x) else x[0]))
    with pytest.raises(CaptureError, match="gives other outputs than the model"):
        fxquant.prepare_qat(model, torch.randn(IMAGE))


def test_a_float_leaf_that_overwrites_what_others_read_is_refused():
    block = nn.Sequential(nn.ReLU(inplace=True), nn.Softsign())
    config = fxquant.QuantConfig(keep_float=("block",))

    def forward(s, x):
        y = s.a(x)
        return s.block(y) + y

    with pytest.raises(CaptureError, match="kept in float and overwrites 'a'"):
        fxquant.prepare_qat(Net(forward, block=block), config=config)
    model = Net(lambda s, x: s.b(s.block(s.a(x))), block=block)
    promise(model, config=config)


@pytest.mark.parametrize("pattern", ["blocks", "same"])
def test_keep_float_names_containers_and_second_names(pattern):
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softsign())
    model = Net(lambda s, x: s.b(s.blocks[0](s.a(x))), blocks=nn.ModuleList([block]), same=block)
    promise(model, config=fxquant.QuantConfig(keep_float=(pattern,)))


def test_a_float_island_stays_in_eval_inside_integers():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Dropout(0.9), nn.Softsign()))
    config = fxquant.QuantConfig(keep_float=("1",))
    _, quantized = promise(model, config=config)
    x = torch.randn(IMAGE)
    laws.assert_equal(quantized.train()(x), quantized.eval()(x))


@pytest.mark.parametrize("name", ["clone", "detach"])
def test_a_layer_called_like_a_copy_is_a_layer(name):
    layers = {"a": nn.Conv2d(4, 4, 1), name: nn.Softsign(), "b": nn.Conv2d(4, 4, 1)}
    model = nn.Sequential()
    for path, layer in layers.items():
        model.add_module(path, layer)
    promise(model, config=fxquant.QuantConfig(keep_float=(name,)))


@pytest.mark.parametrize("name", ["clone", "detach"])
def test_an_input_called_like_a_copy_is_an_input(name):
    forwards = {"clone": lambda s, clone: s.a(clone), "detach": lambda s, detach: s.a(detach)}
    promise(type("Named", (Net,), {"forward": forwards[name]})(None))


def test_dropout_before_a_pool_is_not_clipped():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5), nn.AvgPool2d(2)).eval()
    prepared = fxquant.prepare_qat(model)
    x = torch.randn(64, 4, 8, 8)
    laws.settle(prepared, x)
    torch.manual_seed(0)
    ours = prepared.train()(x)
    torch.manual_seed(0)
    theirs = copy.deepcopy(model).train()(x)
    assert (ours - theirs).abs().max() < 0.1


def test_a_users_parameter_is_never_overwritten():
    def forward(s, x):
        return s.bn(F.conv2d(x, s.w)) + s.w_bias

    members = {"w": nn.Parameter(torch.randn(4, 4, 1, 1)), "w_bias": nn.Parameter(torch.ones(1))}
    model = Net(forward, bn=nn.BatchNorm2d(4), **members)
    prepared, _ = promise(model, config=fxquant.QuantConfig(batch_norm="fold"))
    assert torch.equal(prepared.w_bias, model.w_bias)


@pytest.mark.parametrize("name", ["class", "self", 'a"b', "graph", "fxquant"])
def test_names_that_generated_code_cannot_hold_are_refused(name):
    with pytest.raises(CaptureError, match=r"(?s)called.*What to do: rename it"):
        fxquant.prepare_qat(_named(name))


def _named(name):
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(4, 4, 1))
    return model


def test_defaults_that_are_no_numbers_stay_arguments():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(4, 4, 1)

        def forward(self, x, sizes=(1, 2)):
            return self.a(x)

    promise(Sized())


def test_what_cannot_be_copied_is_said_so():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.held = (number for number in ())  # Python cannot copy a generator
    with pytest.raises(CaptureError, match=r"(?s)cannot be copied.*What to do"):
        fxquant.prepare_qat(model)


def test_versions_of_state_dicts_are_kept():
    class Versioned(nn.Sequential):
        _version = 3

    prepared = fxquant.prepare_qat(Versioned(nn.Conv2d(4, 4, 1)))
    assert prepared.state_dict()._metadata[""]["version"] == 3


@pytest.mark.parametrize("fake_quant", [fxquant.StraightThrough(), fxquant.LSQ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_prepared_network_may_go_to_half_precision(dtype, fake_quant):
    config = fxquant.QuantConfig(fake_quant=fake_quant)
    net = Net(lambda s, x: F.layer_norm(s.b(s.a(x)) + x, (4, 8, 8)))
    prepared = fxquant.prepare_qat(net, config=config)
    x = torch.randn(4, 4, 8, 8)
    laws.settle(prepared, x)
    prepared.to(dtype).eval()
    laws.assert_equal(fxquant.convert(prepared)(x.to(dtype)), prepared(x.to(dtype)))
