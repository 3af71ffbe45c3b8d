"""Let every live batch norm stop after so many steps of training.

    before   x ── conv → bn ── y
    after    x ── conv → bn, frozen after N steps ── y

Batch statistics are noise that eval() does not have: late in training the network should get
used to the running statistics that it will ship with.
Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference",
section 3.2.1.
"""

from __future__ import annotations

from torch import fx

from fxquant.ops.flow import sites
from fxquant.ops.freeze import FreezeAfter
from fxquant.pipeline import Keeps, Log, Pass, Stage


class FreezeBatchNorm(Pass):
    """Lets every live batch norm stop after so many steps of training."""

    name = "freeze_batch_norm"
    summary = "batch norms stop after so many steps"
    needs = gives = Stage.FLOAT
    keeps = Keeps.EVAL

    def __init__(self, after: int) -> None:
        """`after`: the steps for which statistics of the batch are used."""
        self.after = after

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """One counter for each call of a batch norm."""
        for node, site in sites(gm):
            if "batch_norm" in node.kwargs and site.freeze is None:
                site.freeze = FreezeAfter(self.after).train(site.training)
                log.change(node, f"its batch norm stops after {self.after} steps")
