"""Make one site of a layer, the batch norm behind it and the activation behind that.

    before   x ── conv ── bn ── relu ── y           x ── add ── relu ── y
    after    x ── conv → bn → relu ── y             x ── add → relu ── y

The batch norm stays live: it goes on training, and is folded into the integers of eval().
Inside a site nothing is rounded to integers; the activation becomes a clamp of the codes.
Several activations of one value become one where they are all the same.
Left alone, with the reason: a place whose inner value something else reads too.
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.edit import erase, set_source, source_of
from fxquant.graph.place import take_in
from fxquant.graph.sharing import read_elsewhere
from fxquant.ops.clamp import CLAMP, HARDTANH, RELU6
from fxquant.ops.relu import RELU
from fxquant.ops.spec import Clamp, Output
from fxquant.pipeline import RewritePass, Stage
from fxquant.sites.flow import inputs_of, site_of
from fxquant.sites.foldable import layer_and_norm, why_not_one


class FuseConvBnRelu(RewritePass):
    """Makes one site of a layer, its batch norm and its activation."""

    name = "fuse_conv_bn_relu"
    summary = "a layer, its batch norm and its activation become one site"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A layer and a batch norm; or an operator with a range of its own, and every call of the
        clamp that stands behind it.
        """
        pair = layer_and_norm(gm, node)
        if pair is not None:
            return pair
        clamp = _clamp(gm, node)
        if clamp is None:
            return None
        producer = inputs_of(node)[0]
        before = site_of(gm, producer)
        if before is None or before.op.output is not Output.OWN or before.activation:
            return None
        return producer, *(reader for reader in producer.users if _clamp(gm, reader) == clamp)

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Every reader of the inner value must be inside."""
        first, *readers = match
        if "batch_norm" in readers[0].kwargs:
            return why_not_one(gm, first, readers[0])
        return read_elsewhere(first, *readers)

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Move the batch norm or the clamp into the first site."""
        first, *readers = match
        set_source(gm, first, source_of(gm, readers[0]))
        if "batch_norm" in readers[0].kwargs:
            # the site moves down to its batch norm, whose module is read from there on
            readers[0].append(first)
            first.kwargs = {**first.kwargs, "batch_norm": readers[0].kwargs["batch_norm"]}
        else:
            site = site_of(gm, first)
            assert site is not None
            site.activation = _clamp(gm, readers[0])
        for reader in readers:
            take_in(first, reader)
            reader.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
            erase(reader)
        return f"took in {', '.join(repr(reader.name) for reader in readers)}"


def _clamp(gm: fx.GraphModule, node: fx.Node) -> Clamp | None:
    """The limits of a ReLU, ReLU6, Hardtanh or clamp; None for anything else."""
    site = site_of(gm, node)
    if site is None:
        return None
    if site.op is RELU:
        return Clamp(0.0, float("inf"))
    if site.op not in (CLAMP, RELU6, HARDTANH):
        return None
    low, high = node.kwargs["low"], node.kwargs["high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    return Clamp(low, high)
