"""Give an operator of your own an integer form: Mish, y = x·tanh(ln(1 + eˣ)).

    python examples/07_add_an_operator.py

    before   x ── nn.Mish ── y         refused: no integer form
    after    x ── mish ── y            one table: every code's result, rounded once

Everything known of an operator is one record; a pass writes the calls that it stands for. In
fxquant's own tree the record is a file of fxquant/ops and a line in its list, and canonicalize is
the pass.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxquant
from fxquant.graph.edit import called_module, erase, insert_site
from fxquant.graph.trace import trace
from fxquant.ops.silu import SILU
from fxquant.ops.table import table_numbers, table_reader
from fxquant.pipeline import Recipe, RewritePass, Stage
from fxquant.recipes import prepare_recipe
from fxquant.sites.call_site import CallSite


def mish(input: Tensor) -> Tensor:
    """Its float meaning, for any shape."""
    return F.mish(input)


MISH = replace(  # in a file of its own: OpSpec(…), every field written
    SILU,
    name="mish",
    function=mish,
    functions=(F.mish,),
    modules={nn.Mish: lambda module: {}},
    read=table_reader(mish),
    numbers=table_numbers(mish),  # the integers: a table; the kernel, which looks up, is SILU's
)


class WriteMish(RewritePass):
    """Before: x ── nn.Mish ── y.   After: x ── mish ── y, a call site."""

    name = "write_mish"
    summary = "Mish becomes a call site"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """Where it might fit: the module, or the function."""
        called = isinstance(called_module(gm, node), nn.Mish) or node.target is F.mish
        return (node,) if called else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Why not here: nothing speaks against it."""

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """What to do."""
        (node,) = match
        with gm.graph.inserting_before(node):
            site = insert_site(gm, f"mish_{node.name}", CallSite(MISH), node.args[:1])
        erase(node, use_instead=site)
        return "written as mish"


def main() -> None:
    """Refused before, integers after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Mish(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(64, 1, 8, 8)
    try:
        fxquant.prepare_qat(model)
    except fxquant.FxQuantError as error:
        print(error, "\n")

    passes = prepare_recipe(fxquant.QuantConfig(), frozenset()).passes
    recipe = Recipe("mine", (WriteMish(), *passes))
    prepared = trace(model)
    recipe.run(prepared, check_on=(x,))
    prepared.train()(x)
    quantized = fxquant.convert(prepared)
    print(fxquant.compare(fxquant.as_float(prepared), prepared.eval(), x))
    print("equal    ", torch.equal(quantized(x), prepared(x)))


if __name__ == "__main__":
    main()
