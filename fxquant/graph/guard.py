"""What a graph asks of its inputs at every call: the shapes for which it was captured."""

from __future__ import annotations

from torch.fx.node import has_side_effect
from torch.overrides import handle_torch_function, has_torch_function_unary

from fxquant.errors import ShapeError


@has_side_effect
def require_shapes(holds: bool, text: str) -> None:
    """Refuse a call for which the graph does not hold; a node of the graph while it is traced.

    Raises:
        ShapeError: says with `text` what it was captured for.
    """
    if has_torch_function_unary(holds):
        handle_torch_function(require_shapes, (holds,), holds, text)
    elif not holds:
        raise ShapeError(
            f"{text}.\n"
            "What to do: prepare the float model again with example_inputs of the new shapes, or "
            "bring the inputs to the old ones."
        )
