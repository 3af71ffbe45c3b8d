"""The shape of a graph in one line: its operators in order."""

from torch import fx

from fxquant.sites.flow import sites


def shape(gm: fx.GraphModule) -> str:
    """`conv2d+relu add`: fused activations and batch norms behind a plus."""
    return " ".join(
        "+".join(
            str(part)
            for part in (
                site.op.name,
                "bn" if site.op.folds and "batch_norm" in node.kwargs else None,
                site.activation,
            )
            if part
        )
        for node, site in sites(gm)
    )
