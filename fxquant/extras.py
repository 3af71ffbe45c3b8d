"""Packages that are optional: the core needs torch and networkx only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fxquant.errors import MissingExtraError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports: what is missing is an error that names the extra which brings it."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {error.name or 'a package'}, which cannot be imported: {error}.\n"
            f"What to do: pip install 'fxquant[{extra}]'"
        ) from error
