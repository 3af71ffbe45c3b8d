"""Norms of rows in integers against the real ones.

By hand, layer norm, uint8, s = 1/2, z = 10, eps = 11/4, s_y = 1/32, z_y = 128, codes 10 12 14 20:

    d = 0 2 4 10        Σd = 16        Σd² = 120        u = 4·d - 16 = -16 -8 0 24
    V = 4·120 - 16² + 4²·eps/s² = 400        32·u/√V = -25.6 -12.8 0 38.4        102 115 128 166
"""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant.errors import AccumulatorError, UnsupportedOperatorError
from fxquant.schemes import INT16, UINT8, QuantScheme
from tests import laws, truth
from tests.ops.calls import integers, qparams

X, Y = qparams(0.5, 10), qparams(1 / 32, 128)
SIGNED = QuantScheme(symmetric=False)
UINT4 = QuantScheme(bits=4, signed=False, symmetric=False)
MOMENTS = {
    "layer_norm": truth.mean_moments,
    "rms_norm": truth.zero_moments,
    "normalize": truth.length,
}


def codes_of(*values, dtype=torch.uint8):
    return torch.tensor(values, dtype=dtype)


def over_rows(name, x, y, codes, eps=1e-5, weight=None, bias=None):
    """Codes [rows, N] through the operator, row by row."""
    if name == "normalize":
        return integers(name, (x,), y, codes, dim=1, eps=eps)
    options = {"normalized_shape": codes.shape[1:], "weight": weight, "eps": eps}
    options |= {"bias": bias} if name == "layer_norm" else {}
    return integers(name, (x,), y, codes, **options)


def real_rows(name, x, y, codes, eps=1e-5, weight=None, bias=None):
    """The same, correctly rounded."""
    eps = Fraction(eps) ** (2 if name == "normalize" else 1)
    weight, bias = (
        [float(default)] if value is None else value.tolist()
        for value, default in ((weight, 1), (bias, 0))
    )
    return torch.from_numpy(truth.norm(MOMENTS[name], codes.numpy(), x, y, eps, weight, bias))


def random_rows(rows, columns, scheme, seed=0):
    """Rows of codes of every spread, from nearly all alike to all of the range."""
    generator = torch.Generator().manual_seed(seed)
    values = scheme.qmax - scheme.qmin + 1
    spread = 2 ** (torch.rand(rows, 1, generator=generator) * scheme.bits)
    start = torch.rand(rows, 1, generator=generator) * (values - spread)
    codes = start + torch.rand(rows, columns, generator=generator) * spread
    return (codes.floor().clamp(0, values - 1) + scheme.qmin).to(scheme.dtype)


# ------------------------------------------------------------------------ by hand


def test_layer_norm_by_hand():
    found = over_rows("layer_norm", X, Y, codes_of([10, 12, 14, 20]), eps=2.75)
    assert found.tolist() == [[102, 115, 128, 166]]


def test_layer_norm_by_hand_with_weight_and_bias():
    """w·n + b = -2·-0.8 + 1, 0·n - 1, n + 0, 0.5·1.2 + 0.25, times 32."""
    weight, bias = torch.tensor([-2.0, 0, 1, 0.5]), torch.tensor([1.0, -1, 0, 0.25])
    codes = codes_of([10, 12, 14, 20])
    found = over_rows("layer_norm", X, Y, codes, eps=2.75, weight=weight, bias=bias)
    assert found.tolist() == [[211, 96, 128, 155]]


def test_rms_norm_by_hand():
    """d = 1 7: u = 2 14, V = 2·50, and 32·u/10 = 6.4 44.8."""
    assert over_rows("rms_norm", X, Y, codes_of([11, 17]), eps=0.0).tolist() == [[134, 173]]


def test_rms_norm_without_eps_takes_that_of_float32():
    """s = 2⁻¹², d = 1: x² = 2⁻²⁴ and eps = 2⁻²³, so 32·x/√(x² + eps) = 32/√3 = 18.5."""
    x = qparams(2.0**-12, 10)
    assert over_rows("rms_norm", x, Y, codes_of([11, 9]), eps=None).tolist() == [[146, 110]]


def test_normalize_by_hand():
    """d = 3 -4: 32·0.6 = 19.2 and -32·0.8 = -25.6; its length is 5/2, so eps = 5 halves them."""
    assert over_rows("normalize", X, Y, codes_of([13, 6]), eps=1e-12).tolist() == [[147, 102]]
    assert over_rows("normalize", X, Y, codes_of([13, 6]), eps=2.5).tolist() == [[147, 102]]
    assert over_rows("normalize", X, Y, codes_of([13, 6]), eps=5.0).tolist() == [[138, 115]]


# ------------------------------------------------------------------------ against the real ones


@pytest.mark.parametrize("columns", [1, 2, 3, 64, 257, 768])
@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (qparams(0.0173, 131), qparams(0.03, 120)),
        (qparams(2.0**-12, 0), qparams(0.0021, 3)),
        (qparams(0.6, -100, SIGNED), qparams(0.011, 7, SIGNED)),
        (qparams(0.3, 5, UINT4), qparams(0.25, 8, UINT4)),
        (qparams(0.0007, 123, INT16), qparams(0.05, 128)),
        (qparams(0.02, 128), qparams(0.0003, -77, INT16)),
        (qparams(3e-5, -32768, INT16), qparams(0.0003, 0, INT16)),
    ],
)
def test_random_rows_are_within_one_step(name, columns, x, y):
    codes = random_rows(max(10_000 // columns, 5), columns, x.scheme)
    generator = torch.Generator().manual_seed(columns)
    weight, bias = torch.randn(2, columns, generator=generator)
    options = {} if name == "normalize" else {"weight": weight}
    options |= {"bias": bias} if name == "layer_norm" else {}
    found = over_rows(name, x, y, codes, **options)
    assert found.dtype is y.scheme.dtype
    error = (found - real_rows(name, x, y, codes, **options)).abs()
    assert error.max() <= 1
    # of 8 bits hardly a code; steps of 16 bits are 256 times as small
    assert (error > 0).double().mean() <= (1e-3 if y.scheme.bits == 16 else 1e-4)


scales = st.floats(-6, 4).map(lambda power: 10**power)
weights = st.one_of(st.just(0.0), st.tuples(st.sampled_from([-1, 1]), scales).map(math.prod))


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(sorted(MOMENTS)), s_x=scales, s_y=scales, weight=weights, bias=weights,
    eps=st.one_of(st.just(0.0), st.floats(-15, 3).map(lambda power: 10**power)),
    scheme=st.sampled_from([UINT8, INT16]), columns=st.integers(1, 40), seed=st.integers(0, 99),
    data=st.data(),
)
@example("layer_norm", 1e-6, 1e-6, 1e4, -1e4, 1e3, UINT8, 4, 0, None)
@example("normalize", 1e-30, 1e-6, 1.0, 0.0, 1e3, INT16, 4, 0, None)
@example("rms_norm", 1e-38, 1e-38, 1e30, 0.0, 1e-5, UINT8, 4, 0, None)
def test_no_scale_overflows(
    name, s_x, s_y, weight, bias, eps, scheme, columns, seed, data
):
    """Half a step, and what 27 bits cannot say of w·u/√V + b where that is many steps."""
    zero = scheme.qmin if data is None else data.draw(st.integers(scheme.qmin, scheme.qmax))
    x, y = qparams(s_x, zero, scheme), qparams(s_y, 100)
    codes = random_rows(5, columns, scheme, seed)
    weight, bias = torch.full((columns,), weight), torch.full((columns,), bias)
    weight = torch.ones(columns) if name == "normalize" else weight
    bias = bias if name == "layer_norm" else torch.zeros(columns)
    options = {} if name == "normalize" else {"weight": weight}
    options |= {"bias": bias} if name == "layer_norm" else {}
    found = over_rows(name, x, y, codes, eps, **options)
    largest = weight.double().abs() * math.sqrt(columns) + bias.double().abs()
    off = largest * 2.0**-27
    low, high = (
        real_rows(name, x, y, codes, eps, weight=weight, bias=bias.double() + sign * off)
        for sign in (-1, 1)
    )
    assert (low <= found).all()
    assert (found <= high).all()


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("x", [qparams(0.02, 128), qparams(1e-6, 0), qparams(0.001, 55, INT16)])
def test_rows_of_equal_values_give_the_bias(x, eps):
    """Their variance is 0: nothing but eps is below the fraction, and 0/0 is 0."""
    codes = torch.arange(x.scheme.qmin, x.scheme.qmax, 7).to(x.scheme.dtype)[:, None].repeat(1, 5)
    weight, bias = torch.tensor([1e4, -3.0, 0, 1e-6, 1]), torch.tensor([0.5, -1, 1 / 32, 0, 1e9])
    found = over_rows("layer_norm", x, Y, codes, eps, weight, bias)
    assert found.unique(dim=0).tolist() == [[144, 96, 129, 128, 255]]


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("name", ["rms_norm", "normalize"])
def test_rows_of_zeros_give_zero(name, eps):
    assert over_rows(name, X, Y, codes_of([10, 10, 10]), eps).tolist() == [[128, 128, 128]]


def test_a_rows_only_value_is_its_mean_or_its_length():
    codes = codes_of([0], [9], [10], [255])
    assert over_rows("layer_norm", X, Y, codes).tolist() == [[128]] * 4
    assert over_rows("rms_norm", X, Y, codes, 0.0).tolist() == [[96], [96], [128], [160]]
    assert over_rows("normalize", X, Y, codes).tolist() == [[96], [96], [128], [160]]


# ------------------------------------------------------------------------ long rows


@pytest.mark.parametrize(("scheme", "columns"), [(UINT8, 2**23), (INT16, 2**15)])
def test_the_longest_rows_do_not_overflow(scheme, columns):
    """The largest variance gives ±1, the largest distance √(N-1), the largest length 1 and 1/√N."""
    x = qparams(0.01, scheme.qmin, scheme)
    halves, one, all_ = (torch.full((1, columns), scheme.qmin, dtype=scheme.dtype) for _ in "123")
    halves[0, ::2] = one[0, 0] = all_[0, :] = scheme.qmax
    found = over_rows("layer_norm", x, Y, halves, 0.0)[0]
    assert (found[::2].unique().tolist(), found[1::2].unique().tolist()) == ([160], [96])
    found = over_rows("layer_norm", x, qparams(columns**0.5 / 100, 128), one, 0.0)[0]
    assert (found[:1].tolist(), found[1:].unique().tolist()) == ([228], [128])
    assert over_rows("rms_norm", x, Y, all_, 0.0).unique().tolist() == [160]
    small = qparams(columns**-0.5 / 32, 128)
    assert over_rows("normalize", x, small, all_).unique().tolist() == [160]


@pytest.mark.parametrize("part", [1e-9, 0.3, 0.7, 1.0, 1.4, 5.0])
@pytest.mark.parametrize(("scheme", "columns"), [(UINT8, 2**16 + 3), (INT16, 2**15)])
@pytest.mark.parametrize("name", MOMENTS)
def test_long_rows_beside_an_eps_as_large_as_codes(name, scheme, columns, part):
    """`part` of R²/2 squared steps, where V begins to be divided; a second row has no variance
    to speak of.
    """
    x, y = qparams(0.01, scheme.qmin + 7, scheme), qparams(0.02, 128)
    codes, eps = random_rows(1, columns, scheme), part * 4**scheme.bits / 2 * 1e-4
    codes = torch.cat([codes, codes % 2 + scheme.qmin + 7])
    eps = eps**0.5 if name == "normalize" else eps
    y = qparams(float(y.scale) / columns**0.5, 128) if name == "normalize" else y
    error = (over_rows(name, x, y, codes, eps) - real_rows(name, x, y, codes, eps)).abs()
    assert error.max() <= 1
    assert (error > 0).sum() <= 3


def test_codes_that_share_memory():
    codes = random_rows(1, 40, UINT8)
    expected = over_rows("layer_norm", X, Y, codes)
    assert torch.equal(over_rows("layer_norm", X, Y, codes.expand(3, 40)), expected.expand(3, 40))
    assert torch.equal(codes, random_rows(1, 40, UINT8))


@pytest.mark.parametrize(("dtype", "most"), [(torch.uint8, 2**23), (torch.int16, 2**15)])
@pytest.mark.parametrize("name", MOMENTS)
def test_longer_rows_are_refused(name, dtype, most):
    x = qparams(0.01, 0, UINT8 if dtype is torch.uint8 else INT16)
    codes = torch.zeros(1, 1, dtype=dtype).expand(1, most + 1)
    with pytest.raises(AccumulatorError, match=rf"(?s)over {most + 1} values.*{most} may not.*do:"):
        over_rows(name, x, Y, codes)


# ------------------------------------------------------------------------ shapes and layouts


def as_it_lies(codes):
    """The same codes in other places of memory."""
    wide = torch.zeros(*codes.shape[:-1], 2 * codes.shape[-1], dtype=codes.dtype)
    wide[..., ::2] = codes
    turned = codes.mT.contiguous().mT
    return (wide[..., ::2], turned, codes.contiguous(memory_format=torch.channels_last))


CALLS = {
    "layer_norm": {"normalized_shape": (5, 7), "weight": None, "bias": None, "eps": 1e-5},
    "rms_norm": {"normalized_shape": (6, 5, 7), "weight": None, "eps": 1e-5},
    "group_norm": {"num_groups": 3, "weight": torch.randn(6), "bias": torch.randn(6), "eps": 1e-5},
    "instance_norm": {"axis": -3, "weight": torch.randn(6), "bias": None, "eps": 1e-5},
    "normalize": {"dim": 1, "eps": 1e-12},
}


@pytest.mark.parametrize("name", CALLS)
def test_how_codes_lie_in_memory_does_not_matter(name):
    codes = random_rows(12, 35, UINT8).reshape(2, 6, 5, 7)
    expected = integers(name, (X,), Y, codes, **CALLS[name])
    for other in as_it_lies(codes):
        assert torch.equal(integers(name, (X,), Y, other, **CALLS[name]), expected)
    alone = [integers(name, (X,), Y, sample[None], **CALLS[name]) for sample in codes]
    assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("name", CALLS)
def test_no_row_at_all(name):
    empty = torch.zeros(0, 6, 5, 7, dtype=torch.uint8)
    assert integers(name, (X,), Y, empty, **CALLS[name]).shape == empty.shape


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (2, 6, 3, 5), (2, 6, 2, 3, 2)])
def test_a_group_is_a_row_with_a_weight_per_channel(shape):
    codes, options = random_rows(24, 60, UINT8).flatten()[: math.prod(shape)].reshape(shape), {}
    options = {"weight": torch.randn(6), "bias": torch.randn(6), "eps": 1e-3}
    groups = codes.reshape(shape[0] * 3, -1)
    per_value = {
        k: options[k].repeat_interleave(math.prod(shape[2:])).reshape(3, -1)
        for k in ("weight", "bias")
    }
    found = integers("group_norm", (X,), Y, codes, num_groups=3, **options)
    for g in range(3):
        rows = groups[g::3]
        expected = over_rows(
            "layer_norm", X, Y, rows, 1e-3, per_value["weight"][g], per_value["bias"][g]
        )
        assert torch.equal(found.reshape(shape[0] * 3, -1)[g::3], expected)


def test_instances_are_groups_of_one_channel_with_or_without_a_batch():
    codes, options = random_rows(6, 35, UINT8).reshape(1, 6, 5, 7), CALLS["instance_norm"]
    found = integers("instance_norm", (X,), Y, codes, **options)
    without_axis = {k: v for k, v in options.items() if k != "axis"}
    grouped = integers("group_norm", (X,), Y, codes, num_groups=6, **without_axis)
    assert torch.equal(found, grouped)
    assert torch.equal(integers("instance_norm", (X,), Y, codes[0], **options), found[0])


@pytest.mark.parametrize("dims", [(1, 2), (-1, 0), [0, 1, 2, 3], 2, -4])
def test_normalize_over_any_dimensions(dims):
    codes = random_rows(12, 35, UINT8).reshape(2, 6, 5, 7)
    along = (dims,) if isinstance(dims, int) else tuple(dims)
    last = codes.movedim(along, tuple(range(-len(along), 0)))
    rows = last.flatten(-len(along)).flatten(0, -2) if len(along) < 4 else last.reshape(1, -1)
    expected = over_rows("normalize", X, Y, rows, 1e-12).reshape(last.shape)
    found = integers("normalize", (X,), Y, codes, dim=dims, eps=1e-12)
    assert torch.equal(found, expected.movedim(tuple(range(-len(along), 0)), along))


# ------------------------------------------------------------------------ spellings


class Function(nn.Module):
    def __init__(self, function, parameters=0):
        super().__init__()
        self.function = function
        self.values = nn.ParameterList(nn.Parameter(torch.randn(6)) for _ in range(parameters))

    def forward(self, x):
        return self.function(x, *self.values)


def quantized(model, x):
    prepared = fxquant.prepare_qat(nn.Sequential(model), x)
    laws.settle(prepared, x)
    found = fxquant.convert(prepared)
    laws.assert_equal(found(x), prepared(x))
    return found


SPELLINGS = {
    "F.layer_norm": Function(lambda x, w, b: F.layer_norm(x, (6,), w, b, 0.1), 2),
    "a shape of the input's": Function(lambda x: F.layer_norm(x, x.shape[1:])),
    "torch.layer_norm": Function(lambda x, w: torch.layer_norm(x, [6], bias=w), 1),
    "F.group_norm": Function(lambda x, w: F.group_norm(x, 3, w), 1),
    "torch.group_norm": Function(lambda x: torch.group_norm(x, 2, eps=0.5)),
    "F.instance_norm": Function(lambda x, b: F.instance_norm(x, bias=b, eps=0.2), 1),
    "F.rms_norm": Function(lambda x, w: F.rms_norm(x, (6, 6), eps=0.3) * w, 1),
    "torch.rms_norm": Function(lambda x, w: torch.rms_norm(x, (6,), w), 1),
    "F.normalize": Function(lambda x: F.normalize(x, p=2.0, eps=2.0)),
    "nn.LayerNorm": nn.LayerNorm((6, 6), bias=False),
    "nn.GroupNorm": nn.GroupNorm(2, 6),
    "nn.InstanceNorm1d": nn.InstanceNorm1d(6, affine=True),
    "nn.RMSNorm": nn.RMSNorm(6),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_known(spelling):
    x = torch.randn(5, 6, 6)
    real = SPELLINGS[spelling](x).detach()
    step = float(real.max() - real.min()) / 255
    error = quantized(SPELLINGS[spelling], x)(x) - real
    assert error.abs().max() < 0.05 * float(real.abs().max()) + step


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_instance_norm_with_or_without_a_batch(dims):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    model = kind(4, eps=0.1)
    for shape in ((2, 4, *[5] * dims), (4, *[5] * dims)):
        x = torch.randn(shape)
        assert (quantized(model, x)(x) - model(x)).abs().max() < 0.05


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "turned"])
def test_torchvisions_layer_norm_of_images(layout):
    """It permutes, so codes come as a view; it is traced into."""
    convnext = pytest.importorskip("torchvision.models.convnext")
    model = convnext.LayerNorm2d(6)
    nn.init.normal_(model.weight)
    x = torch.randn(2, 6, 5, 7)
    found = quantized(model, x)
    expected = found(x)
    assert (expected - model(x)).abs().max() < 0.05 * model(x).abs().max()
    other = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": torch.stack([x, -x], -1)[..., 0],
        "turned": x.mT.contiguous().mT,
    }
    laws.assert_equal(found(other[layout]), expected)


class RunningStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        return F.instance_norm(x, self.mean, self.var)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.InstanceNorm2d(6, track_running_stats=True)), "call_module 0"),
        (RunningStatistics(), "call_function instance_norm"),
        (Function(lambda x: F.instance_norm(x, use_input_stats=False)), "instance_norm"),
        (Function(lambda x: F.normalize(x, p=1.0)), "call_function normalize"),
        (Function(lambda x: F.layer_norm(x, (6,), eps=x.shape[0] * 1e-3)), "layer_norm"),
    ],
)
def test_what_has_no_integer_form_is_refused(model, words):
    with pytest.raises(UnsupportedOperatorError, match=words):
        fxquant.prepare_qat(model)


def test_weights_train_and_their_integers_follow():
    model, x = nn.Sequential(nn.LayerNorm(6)), torch.randn(8, 6)
    prepared = fxquant.prepare_qat(model, x)
    laws.settle(prepared, x)
    before = prepared(x)
    prepared.train()(x).square().sum().backward()
    weight, bias = dict(prepared.named_parameters()).values()
    assert weight.grad.abs().min() > 0
    assert bias.grad.abs().sum() > 0
    with torch.no_grad():
        weight.mul_(-1)
    laws.assert_equal(prepared.eval()(x) > 0, before < 0)
