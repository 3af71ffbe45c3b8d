"""Embedding: the table is quantized, the indices never are.

By hand, a table (0.5, -1), (1, 2) in steps of 0.5 around z = 10: codes (11, 8), (12, 14).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.errors import UnsupportedOperatorError
from fxquant.sites.integer import IntegerOp, Quantize
from tests import laws
from tests.ops.calls import integers, qparams


class Classifier(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table, self.linear = nn.Embedding(20, 6, **options), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.linear(self.table(tokens)).mean(1)


class Shifted(Classifier):
    """Indices are computed: no operator of fxquant's."""

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        rows = self.table((tokens + 1) % 20) + F.embedding(positions, self.table.weight)
        return self.linear(rows)


TOKENS = torch.tensor([[1, 4, 19, 0, 0], [7, 7, 2, 3, 1]])


def prepared_and_quantized(model, example=TOKENS):
    prepared = fxquant.prepare_qat(model, example)
    laws.settle(prepared, TOKENS)
    return prepared, fxquant.convert(prepared)


def test_by_hand():
    codes = torch.tensor([[11, 8], [12, 14]], dtype=torch.uint8)
    options = {"padding_idx": None, "scale_grad_by_freq": False}
    q, rows = qparams(0.5, 10), torch.tensor([1, 0, 1])
    found = integers("embedding", (q,), q, codes, indices=rows, **options)
    assert found.tolist() == [[12, 14], [11, 8], [12, 14]]


@pytest.mark.parametrize(("kind", "example"), [
    (Classifier, TOKENS), (Classifier, None), (Shifted, TOKENS),
])
def test_the_table_is_a_constant_and_nothing_quantizes_indices(kind, example):
    prepared, quantized = prepared_and_quantized(kind(), example)
    for tokens in (TOKENS, TOKENS.flip(1)[:1]):
        laws.assert_equal(quantized(tokens), prepared(tokens))
    assert not any(isinstance(m, Quantize) for m in quantized.modules())
    table = next(m for m in quantized.modules() if isinstance(m, IntegerOp))
    assert table.op.name == "embedding"
    assert {b.dtype for b in quantized.buffers() if b.shape == (20, 6)} == {torch.uint8}
    assert not list(quantized.parameters())


def test_only_the_rows_that_are_read_have_gradients_and_the_padding_has_none():
    model = Classifier(padding_idx=0)
    prepared, _ = prepared_and_quantized(model)
    prepared.train()(TOKENS).square().sum().backward()
    touched = prepared.table.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 2, 3, 4, 7, 19]


def test_the_whole_table_decides_its_range():
    model = Classifier()
    model.table.weight.data[13] = 50.0  # which no token names
    _, quantized = prepared_and_quantized(model)
    (audited,) = (row for row in fxquant.audit(quantized).rows if row.operator == "embedding")
    assert audited.scale == pytest.approx(50.0 / 255, rel=0.1)


def test_rows_that_are_rescaled_as_they_are_read_are_refused():
    with pytest.raises(UnsupportedOperatorError, match="max_norm overwrites the rows"):
        fxquant.prepare_qat(Classifier(max_norm=1.0), TOKENS)
    class Renormed(Classifier):
        def forward(self, tokens):
            return self.linear(F.embedding(tokens, self.table.weight, max_norm=1.0))

    with pytest.raises(UnsupportedOperatorError, match="max_norm overwrites the rows"):
        fxquant.prepare_qat(Renormed())
