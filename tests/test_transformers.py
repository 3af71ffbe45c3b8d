"""Transformers, from float to integers: attention however it is spelled, masks, position tables.

What must hold of each: the captured graph is the model in both modes; a training step reaches all
parameters, which keep their names; eval() is what `convert` gives, for any number of samples; and
between quantize and dequantize there are integers only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant.graph.compare import largest_differences
from fxquant.graph.spell_out import spelled_out
from fxquant.graph.trace import trace
from fxquant.graph.values import assertions, scalars
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from tests import laws

WIDTH, HEADS, TOKENS = 12, 3, 5
SEQUENCE = (TOKENS, WIDTH)
IMAGE = (3, 16, 16)


# ------------------------------------------------------------------------ networks


class Projected(nn.Module):
    """Attention between layers: `attend(self, q, k, v)` of [N, heads, L, D] each."""

    def __init__(self, attend: Callable[..., Any]) -> None:
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("causal", torch.ones(8, 8).tril())
        self.register_buffer("alibi", -0.5 * (torch.arange(8) - torch.arange(8)[:, None]).abs())
        self.temperature = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.position = nn.Parameter(torch.randn(8, WIDTH))
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        places = torch.arange(TOKENS)
        self.register_buffer("places", places - places[:, None] + TOKENS - 1)
        self.drop = 0.0

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        x = x + self.position[:t]
        qkv = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = self.attend(self, q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, c))


def by_hand(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, -1) @ v


def einsums(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid, bhjd -> bhij", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(-1), v)


def sdpa(**options: Any) -> Callable[..., Tensor]:
    return lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def grouped_queries(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


def dropped(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.2 if m.training else 0.0)


def causal_buffer(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As nanoGPT writes it."""
    t = q.shape[2]
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(m.causal[:t, :t] == 0, float("-inf"))
    return F.softmax(scores, dim=-1) @ v


def causal_made(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that is made anew at every call, of shapes."""
    t = q.size(2)
    mask = torch.triu(torch.full((t, t), float("-inf"), device=q.device), diagonal=1)
    return torch.softmax(q @ k.mT + mask, -1) @ v


def causal_written(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that is written in parts."""
    t = q.size(2)
    mask = q.new_zeros((t, t))
    for i in range(t):
        mask[i, i + 1 :] = -1e9
    return torch.softmax(q @ k.mT + mask, -1) @ v


def causal_where(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t = q.size(2)
    keep = torch.ones(t, t, dtype=torch.bool, device=q.device).tril()
    scores = torch.where(keep, q @ k.mT, torch.finfo(torch.float32).min)
    return torch.softmax(scores, -1) @ v


def alibi(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    t = q.size(2)
    bias = m.alibi[:t, :t].masked_fill(m.causal[:t, :t] == 0, float("-inf"))
    return torch.softmax(q @ k.mT + bias, -1) @ v


def relative(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A table of relative positions, temperatures of the heads, cosine similarity."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    scores = scores * torch.clamp(m.temperature, max=math.log(100.0)).exp()
    scores = scores + m.table[m.places.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1)
    return torch.softmax(scores, -1) @ v


def moved(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Moves of every kind, which mean nothing together."""
    a, b = torch.stack([q, k], 1).flip(-1).chunk(2, dim=1)
    a, b = a.squeeze(1).roll(2, -1), b.movedim(1, 2)[:, :, 0].mT.repeat(1, 1, 2, 1).tile(2)
    a = a.repeat_interleave(2, -1).expand(a.shape[0], -1, -1, -1)
    left, right = v.split([1, v.shape[-1] - 1], dim=-1)
    return torch.softmax(a @ b, -1)[..., ::2] @ torch.cat([right, left], -1)


ATTENTION: dict[str, Callable[..., Any]] = {
    "by hand": by_hand,
    "einsum": einsums,
    "sdpa": sdpa(),
    "sdpa scaled": sdpa(scale=0.3),
    "sdpa causal": sdpa(is_causal=True),
    "sdpa masked": lambda m, q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=m.causal[:TOKENS, :TOKENS] > 0
    ),
    "sdpa biased": lambda m, q, k, v: F.scaled_dot_product_attention(
        q, k, v, m.alibi[:TOKENS, :TOKENS]
    ),
    "sdpa dropout": dropped,
    "grouped queries": grouped_queries,
    "causal buffer": causal_buffer,
    "causal made": causal_made,
    "causal written": causal_written,
    "causal where": causal_where,
    "alibi": alibi,
    "relative": relative,
    "moved": moved,
}


class Own(nn.Module):
    """nn.MultiheadAttention as `call(self, x)` calls it."""

    def __init__(self, call: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.call = call
        self.first = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.register_buffer("mask", torch.ones(TOKENS, TOKENS).triu(1).bool())
        for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, torch.relu(x))


def itself(m: Any, x: Tensor) -> Tensor:
    return m.attention(x, x, x, need_weights=False)[0]


def crossing(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.attention(x, y, y, need_weights=False)[0]


def three(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.attention(x, y, y[..., : m.attention.vdim] + 1.0, need_weights=False)[0]


def weighing(average: bool) -> Callable[..., Tensor]:
    def call(m: Any, x: Tensor) -> Tensor:
        y, weights = m.attention(x, x, x, average_attn_weights=average)
        return y + weights.sum() if not average else torch.matmul(weights, y)

    return call


MODULES: dict[str, Callable[[], nn.Module]] = {
    "self": lambda: Own(itself, batch_first=True),
    "self, sequence first": lambda: Own(itself),
    "self, no bias, dropout": lambda: Own(itself, batch_first=True, bias=False, dropout=0.2),
    "cross": lambda: Own(crossing, batch_first=True),
    "three": lambda: Own(three, batch_first=True),
    "three widths": lambda: Own(three, batch_first=True, kdim=WIDTH, vdim=7),
    "weights": lambda: Own(weighing(True), batch_first=True),
    "masked": lambda: Own(
        lambda m, x: m.attention(x, x, x, attn_mask=m.mask, need_weights=False)[0], batch_first=True
    ),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True), 2, None, False
    ),
    "encoder, norm first": lambda: nn.TransformerEncoderLayer(
        WIDTH, HEADS, 16, activation="gelu", batch_first=True, norm_first=True
    ),
    "decoder": lambda: Decoder(),
}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 16, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.relu(x), tgt_mask=self.mask)


def torchvisions(name: str) -> nn.Module:
    """Small networks of torchvision's classes, with weights that say something."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    swin, convnext, maxvit = models.swin_transformer, models.convnext, models.maxvit
    stages: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4]}
    stages |= {"patch_size": [2, 2], "window_size": [4, 4], "stochastic_depth_prob": 0.3}
    blocks = [convnext.CNBlockConfig(8, 16, 2), convnext.CNBlockConfig(16, None, 1)]
    build = {
        "vit": lambda: models.VisionTransformer(16, 4, 2, 2, 16, 24, 0.1, 0.1, num_classes=5),
        "swin": lambda: swin.SwinTransformer(**stages, num_classes=5),
        "swin_v2": lambda: swin.SwinTransformer(
            **stages,
            num_classes=5,
            block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        ),
        "convnext": lambda: convnext.ConvNeXt(blocks, 0.3, 0.1, num_classes=5),
        "maxvit": lambda: maxvit.MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 8, 0.3, num_classes=5),
    }
    net = build[name]()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (lambda f=f: Projected(f), SEQUENCE) for name, f in ATTENTION.items()},
    **{name: (build, SEQUENCE) for name, build in MODULES.items()},
    **{
        name: (lambda name=name: torchvisions(name), IMAGE)
        for name in ("vit", "swin", "swin_v2", "convnext", "maxvit")
    },
}


def built(name: str, batch: int = 2) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, sample = CASES[name]
    return build(), torch.randn(batch, *sample)


every_case = pytest.mark.parametrize("name", CASES)


# ------------------------------------------------------------------------ what holds of each


@every_case
def test_the_graph_is_the_model_in_both_modes(name: str):
    """In eval() not bit for bit, since torch's own kernels of attention sum in other orders; in
    train() those would also draw other random numbers.
    """
    model, x = built(name)
    gm = trace(copy.deepcopy(model), (x,))
    assert set(model.state_dict()) <= set(gm.state_dict())
    assert next(largest_differences(gm, model, (x,), (False,))) < 1e-5
    with spelled_out():
        assert next(largest_differences(gm, model, (x,), (True,))) == 0.0


@every_case
def test_a_training_step_and_integers(name: str):
    model, x = built(name)
    prepared = fxquant.prepare_qat(model, x).train()
    outputs = prepared(x)
    (outputs * torch.randn_like(outputs)).sum().backward()
    idle = {n for n, p in model.named_parameters() if n in unused(model, x)}
    assert {n for n, p in prepared.named_parameters() if p.grad is None} == idle
    assert set(model.state_dict()) <= set(prepared.state_dict())
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    with torch.no_grad():
        for batch in (1, 2, 5):
            other = torch.randn(batch, *x.shape[1:])
            assert torch.equal(quantized(other), prepared(other))
        OnlyIntegers(quantized).run(x)
    assert not list(quantized.parameters())
    numbers = [b for m in quantized.modules() if isinstance(m, IntegerOp) for b in m.buffers()]
    assert not any(b.is_floating_point() for b in numbers)


def unused(model: nn.Module, x: Tensor) -> set[str]:
    """The parameters that the model itself makes nothing of."""
    again = copy.deepcopy(model).train()
    again(x).sum().backward()
    return {name for name, p in again.named_parameters() if p.grad is None}


class OnlyIntegers(fx.Interpreter):
    """Nothing but quantize reads a float, nothing but dequantize gives one; shapes may be asked."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op in ("placeholder", "output") or n in scalars(n.graph) | assertions(n.graph):
            return value
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        reads = [] if isinstance(module, Quantize) else [self.env[x] for x in n.all_input_nodes]
        gives = [] if isinstance(module, Dequantize) else [value]
        assert not any(isinstance(x, Tensor) and x.is_floating_point() for x in reads + gives), n
        return value


@every_case
def test_integers_follow_the_float_network(name: str):
    """Within what 8 bits cost: scores between the network and one of other weights are far off."""
    model, x = built(name, 8)
    prepared = fxquant.prepare_qat(model.eval(), x)
    laws.settle(prepared, x)
    with torch.no_grad():
        real, found = model(x), fxquant.convert(prepared)(x)
    assert (found - real).norm() < 0.35 * (real - real.mean()).norm()
