"""Composite calls in plain operators: what torch's own kernels give, but for rounding."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import CaptureError, UnsupportedOperatorError
from fxquant.graph.attention import NotSpelledOutError, scaled_dot_product_attention
from fxquant.graph.einsum import read_equation
from fxquant.graph.spell_out import spelled_out
from fxquant.graph.trace import trace
from tests import laws

T, S, E = 4, 6, 8
CAUSAL = torch.ones(T, T).triu(1).bool()


def assert_same(call):
    """The same outputs spelled out, in float64, where sums differ by little."""
    ours, theirs = [], call()
    with spelled_out():
        ours = call()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def sides(kdim=E, vdim=E, batch=(3,), length=T):
    """Query, key and value, batch first."""
    shapes = ((*batch, T, E), (*batch, length, kdim), (*batch, length, vdim))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


ONE, TWO, THREE = (lambda q, k, v: (q, q, q)), (lambda q, k, v: (q, k, k)), (lambda *x: x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batch", [(3,), ()])
@pytest.mark.parametrize("mask", [None, CAUSAL, torch.randn(T, T), "per head"])
@pytest.mark.parametrize("pick", [ONE, TWO, THREE], ids=["self", "cross", "three"])
def test_multihead_attention(pick, mask, batch, batch_first):
    module = nn.MultiheadAttention(E, 2, batch_first=batch_first).double()
    nn.init.normal_(module.in_proj_bias)
    mask = torch.randn(2 * (batch or (1,))[0], T, T).double() if mask == "per head" else mask
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    args = pick(*sides(batch=batch))
    if not batch_first and batch:
        turned = {id(x): x.transpose(0, 1) for x in args}
        args = [turned[id(x)] for x in args]
    assert_same(lambda: module(*args, attn_mask=mask))
    assert_same(lambda: module(*args, attn_mask=mask, need_weights=False))
    assert_same(lambda: module(*args, average_attn_weights=False))


def test_other_widths_and_lengths_of_keys():
    module = nn.MultiheadAttention(E, 4, kdim=5, vdim=7, bias=False, batch_first=True).double()
    q, k, v = sides(5, 7, length=S)
    assert_same(lambda: module(q, k, v))


def test_keys_that_are_padding():
    module = nn.MultiheadAttention(E, 2, batch_first=True).double()
    q, k, v = sides(length=S)
    padding = torch.arange(S) >= torch.tensor([[6], [3], [1]])
    assert_same(lambda: module(q, k, v, key_padding_mask=padding))
    assert_same(lambda: module(q[0], k[0], v[0], key_padding_mask=padding[1]))


def test_the_function_alone():
    m = nn.MultiheadAttention(E, 2).double()
    q, k, v = (x.transpose(0, 1) for x in sides())
    parameters = (m.in_proj_weight, m.in_proj_bias, None, None, False, 0.0)
    out = (m.out_proj.weight, m.out_proj.bias)
    assert_same(lambda: F.multi_head_attention_forward(q, k, v, E, 2, *parameters, *out))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.2},
        {"is_causal": True},
        {"attn_mask": CAUSAL.logical_not()},
        {"attn_mask": torch.randn(3, 1, T, T, dtype=torch.float64)},
        {"enable_gqa": True},
    ],
)
def test_scaled_dot_product_attention(options):
    q, k, v = sides(batch=(3, 4))
    if "enable_gqa" in options:
        k, v = k[:, :2], v[:, :2]
    assert_same(lambda: F.scaled_dot_product_attention(q, k, v, **options))


def test_what_has_no_plain_form_is_torchs_own():
    module = nn.MultiheadAttention(E, 2, add_bias_kv=True, batch_first=True).double()
    q, k, v = sides()
    assert_same(lambda: module(q, k, v))
    assert_same(lambda: torch.einsum("ii->i", q[0, :, :4]))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_traced_it_is_refused(options):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(E, 2, batch_first=True, **options)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    words = r"(?s)'attention' at .*test_spell_out.py.*add_bias_kv or add_zero_attn.*keep_float"
    with pytest.raises(CaptureError, match=words):
        trace(Net())


def test_a_mask_that_the_input_decides_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(E, 2, batch_first=True)

        def forward(self, x, padding):
            return self.attention(x, x, x, key_padding_mask=padding)[0]

    words = r"(?s)'masked_fill'.*in 'attention'.*the input decides the mask.*keep_float"
    with pytest.raises(UnsupportedOperatorError, match=words):
        fxquant.prepare_qat(Net(), (torch.randn(2, T, E), torch.zeros(2, T).bool()))


EQUATIONS = [
    "bihd,bjhd->bhij",
    "b i h d, b j h d -> b h i j",
    "bhij,bjhd->bihd",
    "ij,jk->ik",
    "ij,jk",  # alphabetical
    "ij,kj",
    "...ij,...jk->...ik",
    "...ij,jk->...ki",
    "bi,bi->b",
    "i,j->ij",
    "i,i->",
    "bcij,bckl->bijkl",  # several rows and columns
    "nchw,kc->nkhw",
    "bxyd,bzwd->bwxyz",
    "ab,ab->ab",
    "abc,cd->bad",
]
SIZES = {c: n for n, c in enumerate("abcdhijklnwxyz", 2)}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation):
    inputs = equation.replace(" ", "").replace("...", "ab").partition("->")[0].split(",")
    a, b = (torch.randn([SIZES[c] for c in side], dtype=torch.float64) for side in inputs)
    assert_same(lambda: torch.einsum(equation, a, b))
    assert_same(lambda: torch.einsum(equation, [a, b]))


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("ij->ji", "over 1 operands"),
        ("ij,jk,kl->il", "over 3 operands"),
        ("ii,ij->j", "a letter twice in 'ii'"),
        ("ij,jk->iik", "a letter twice in 'iik'"),
        ("ij,kl->il", "no matrix product"),  # j is summed alone
        ("ij,jk->im", "no matrix product"),
    ],
)
def test_equations_of_no_matrix_product(equation, reason):
    with pytest.raises(NotSpelledOutError, match=reason):
        read_equation(equation, lambda i: 0)


def test_a_mask_and_a_causal_one_are_too_many():
    x, mask = torch.randn(2, 3, 4), torch.ones(3, 3)
    with pytest.raises(NotSpelledOutError, match="attn_mask or is_causal=True, not both"):
        scaled_dot_product_attention(x, x, x, attn_mask=mask, is_causal=True)


def test_other_equations_are_for_parameters_alone():
    class Net(nn.Module):
        def __init__(self, of_x):
            super().__init__()
            self.weight, self.of_x = nn.Parameter(torch.randn(4, 4)), of_x

        def forward(self, x):
            return x * torch.einsum("ii->i", x if self.of_x else self.weight)

    x = torch.randn(4, 4)
    prepared = fxquant.prepare_qat(Net(False), x)
    laws.settle(prepared, x)
    assert torch.equal(fxquant.convert(prepared)(x), prepared(x))
    with pytest.raises(UnsupportedOperatorError, match=r"node 'einsum'.*test_spell_out.py"):
        fxquant.prepare_qat(Net(True), x)


def test_an_equation_read():
    e = read_equation("bhij,bjhd->bihd", lambda i: 0)
    assert (e.batch, e.rows, e.summed, e.columns) == ("bh", "i", "j", "d")


def test_ellipses_of_other_lengths():
    with pytest.raises(NotSpelledOutError, match="ellipses of other lengths"):
        read_equation("...ij,...jk->...ik", lambda i: 3 + i)


@pytest.mark.parametrize("dim", [0, 1, 3, -1, -2])
def test_stack(dim):
    tensors = [torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3)]
    assert_same(lambda: torch.stack(tensors, dim))
    assert_same(lambda: torch.stack(tuple(tensors), dim=dim))


def patched():
    return nn.MultiheadAttention.forward, torch.finfo, torch.backends.mha.get_fastpath_enabled()


def test_everything_is_as_before():
    before = patched()
    with spelled_out():
        assert all(ours != theirs for ours, theirs in zip(patched(), before, strict=True))
        assert torch.finfo(torch.float16).max == 65504.0
        assert torch.finfo().bits == 32
        assert isinstance(before[1](torch.float16), torch.finfo)
    assert patched() == before


def test_everything_is_as_before_also_behind_an_error():
    before = patched()
    with pytest.raises(RuntimeError), spelled_out():
        torch.ones(2) @ torch.ones(3)
    assert patched() == before


def test_the_graph_asks_for_no_sizes():
    """Self-attention, batch first, is captured without example inputs, and for any sizes."""
    module = nn.MultiheadAttention(E, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    gm = trace(Net()).eval()
    linears = [n for n in gm.graph.nodes if n.target is F.linear]
    assert len(linears) == 2  # one for queries, keys and values
    for batch, length in itertools.product((1, 3), (2, 7)):
        x = torch.randn(batch, length, E)
        torch.testing.assert_close(gm(x), module.eval()(x, x, x)[0])
