"""What a graph asks of its inputs at every call: the shapes for which it was captured."""

from __future__ import annotations

from torch.fx.node import has_side_effect

from fxquant.errors import ShapeError


@has_side_effect
def require_shapes(holds: bool, text: str) -> None:
    """Refuse a call for which the graph does not hold.

    Raises:
        ShapeError: says with `text` what it was captured for.
    """
    if not holds:
        raise ShapeError(
            f"{text}.\n"
            "What to do: prepare the float model again with example_inputs of the new shapes, or "
            "bring the inputs to the old ones."
        )
