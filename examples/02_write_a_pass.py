"""Write a pass of your own, put it into the recipe, and let the recipe check it.

    python examples/02_write_a_pass.py
"""

import torch
from torch import fx, nn

import fxquant
from fxquant.graph.edit import erase
from fxquant.graph.trace import trace
from fxquant.ops.relu import RELU
from fxquant.passes import Canonicalize
from fxquant.pipeline import Recipe, RewritePass, Stage
from fxquant.recipes import CONVERT, prepare_recipe
from fxquant.sites.flow import inputs_of, site_of


class DropRepeatedReLU(RewritePass):
    """Before: x ── relu ── relu ── y.   After: x ── relu ── y."""

    name = "drop_repeated_relu"
    summary = "a ReLU of a ReLU goes"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """Where it might fit: a ReLU."""
        site = site_of(gm, node)
        return (node,) if site is not None and site.op is RELU else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Why not here."""
        before = site_of(gm, inputs_of(match[0])[0])
        return None if before is not None and before.op is RELU else "it reads no ReLU"

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """What to do."""
        erase(match[0], use_instead=inputs_of(match[0])[0])
        return "read a ReLU, gone"


def main() -> None:
    """Run a recipe with the pass in it, on a network that needs it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(8, 1, 8, 8)

    passes = prepare_recipe(fxquant.QuantConfig(), frozenset()).passes
    # behind canonicalize every operator is a call site
    at = 1 + next(i for i, step in enumerate(passes) if isinstance(step, Canonicalize))
    recipe = Recipe("mine", (*passes[:at], DropRepeatedReLU(), *passes[at:]))
    prepared = trace(model)
    recipe.run(prepared, check_on=(x,))  # a pass that changes the function would be undone
    print(fxquant.explain(prepared))

    prepared.train()(x)
    quantized = fxquant.convert(prepared)
    print("equal    ", torch.equal(quantized(x), prepared.eval()(x)))
    try:
        Recipe("upside down", (*CONVERT.passes, DropRepeatedReLU()))
    except fxquant.FxQuantError as error:
        print(error)


if __name__ == "__main__":
    main()
