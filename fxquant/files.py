"""Files are written whole or not at all, and where they cannot be, that is said before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxquant.errors import ConfigError, WriteError


def need_path(path: str | os.PathLike[str]) -> None:
    """Refuse what is no path. Raises ConfigError."""
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"a path is a string or a Path, got {path!r}")
    if "\0" in os.fsdecode(path):
        raise ConfigError(f"a path has no null in it, got {os.fspath(path)!r}")


def need_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a file that cannot be written, before the work that would be lost.

    Raises ConfigError for what is no path, WriteError for a folder or one that is not there.
    """
    need_path(path)
    place = Path(path)
    if not place.name or os.path.isdir(place):  # False, too, where the system cannot tell
        raise WriteError(
            f"'{os.fspath(path)}' cannot be written: it is a folder.\n"
            "What to do: name a file in it."
        )
    if not os.path.isdir(place.parent):
        raise WriteError(
            f"{os.fspath(path)} cannot be written: there is no folder '{place.parent}'.\n"
            "What to do: make it, or give another path."
        )


def ending_of(path: str | os.PathLike[str], endings: Sequence[str], what: str) -> str:
    """The ending of a file that is going to be written, in lower case: one of `endings`.

    Raises ConfigError for another, in the name of `what` it is; WriteError without its folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"{what}'s path is a string or a Path, got {path!r}")
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in endings:
        *others, last = (f".{known}" for known in endings)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"{what}'s file ends in {listed}, got '{os.fspath(path)}'")
    need_folder(path)
    return ending


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what writes a file or a folder at `path`. Raises WriteError."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        reason = getattr(error, "strerror", None) or error
        raise WriteError(
            f"{os.fspath(path)} cannot be written: {reason}.\n"
            "What to do: give a path in a folder that may be written to; what was there stays."
        ) from error


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: beside its place first, then moved there.

    Raises WriteError, or ConfigError for what is no path; what was there before stays.
    """
    need_path(path)
    place = Path(path)
    with writing(path):
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            part.write_bytes(content)
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
