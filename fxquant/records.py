"""Frozen records as YAML and back. Whatever is wrong in a file is one error with its line.

    weight: {bits: 4, narrow: true}        QuantScheme(bits=4, narrow=True)
    calibrator: KL                         KL()
    calibrator: {kind: Percentile, percent: 99.0}

A record's fields are its keys, and the types of the fields say what may stand there; those that are
left out keep their defaults. No object is ever built that the types do not name.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fxquant.errors import ConfigError, FxQuantError
from fxquant.extras import needs_extra
from fxquant.fake_quant import (
    FAKE_QUANTS,
    PROJECTIONS,
    TRANSFORMS,
    FakeQuant,
    Projection,
    Transform,
)
from fxquant.fields import is_number
from fxquant.files import need_path, write_whole
from fxquant.observers import CALIBRATORS, Calibrator
from fxquant.overrides import near_misses

if TYPE_CHECKING:
    import yaml

# a type, and the records by which it may be meant: a file says which under 'kind'
KINDS: tuple[tuple[Any, tuple[type[Any], ...]], ...] = (
    (Calibrator, CALIBRATORS),
    (FakeQuant, FAKE_QUANTS),
    (Transform, TRANSFORMS),
    (Projection, PROJECTIONS),
)

VERSION = 1  # of the files; the key that says so is 'fxquant'

T = TypeVar("T")


class Part:
    """A place in a YAML file: what stands there, and where."""

    def __init__(self, file: str, node: yaml.Node) -> None:
        self.file, self.node = file, node

    def error(self, text: str) -> ConfigError:
        """What to raise for what stands here."""
        return ConfigError(f"{self.file}, line {self.node.start_mark.line + 1}: {text}")

    def entries(self) -> dict[str, Part]:
        """The values of a mapping by their keys; no key stands twice."""
        if self.node.id != "mapping":
            raise self.error(f"'key: value' pairs belong here, not {self.shown}")
        found: dict[str, Part] = {}
        for key_node, value_node in self.node.value:
            key = Part(self.file, key_node)
            name = key.scalar()
            if not isinstance(name, str):
                raise key.error(f"a key is a name, got {key.shown}")
            if name in found:
                raise key.error(f"'{name}' stands here a second time")
            found[name] = Part(self.file, value_node)
        return found

    def only(self, known: Sequence[str]) -> dict[str, Part]:
        """The values of a mapping that has none but the `known` keys."""
        found = self.entries()
        for name, part in found.items():
            if name not in known:
                near = near_misses(name, known) or f"; there are {', '.join(known)}"
                raise part.error(f"there is no '{name}' here{near}")
        return found

    def items(self) -> list[Part]:
        """The parts of a list."""
        if self.node.id != "sequence":
            raise self.error(f"a list belongs here, not {self.shown}")
        return [Part(self.file, node) for node in self.node.value]

    def scalar(self) -> Any:
        """A number, a text, a truth value or nothing."""
        import yaml

        if self.node.id != "scalar":
            raise self.error(f"a single value belongs here, not {self.shown}")
        try:
            value = yaml.SafeLoader("").construct_object(self.node)
        # a tag promises what its text is not: !!int '', !!bool maybe, !!timestamp noon
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
            kind = self.node.tag.rpartition(":")[2]
            raise self.error(f"this cannot be read: {self.shown} as {kind}") from error
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise self.error(f"a number or a text belongs here, not {self.shown}")
        return value

    @property
    def shown(self) -> str:
        """What stands here, for messages."""
        if self.node.id == "scalar":
            return repr(self.node.value[:40])
        return {"mapping": "'key: value' pairs", "sequence": "a list"}[self.node.id]


def read_file(path: str | os.PathLike[str]) -> Part:
    """The YAML document in a file.

    Raises ConfigError where there is none, or more than one, or an alias (nothing here needs one).
    """
    with needs_extra("yaml"):
        import yaml
    need_path(path)
    file, loader = str(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    try:
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise ConfigError(f"{file}, line {line}: aliases (*{event.anchor}) are not read")
        node = yaml.compose(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{file}{where}: this is no YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: lists lie too deep in one another") from error
    if node is None:
        raise ConfigError(f"{file} is empty.\nWhat to do: begin it with 'fxquant: {VERSION}'.")
    return Part(file, node)


def versioned(document: Part, *keys: str) -> dict[str, Part]:
    """The parts of a document of ours; its key 'fxquant' gives the version of the format."""
    found = document.only(("fxquant", *keys))
    if "fxquant" not in found:
        raise document.error(f"the version is missing.\nWhat to do: add 'fxquant: {VERSION}'.")
    version = found.pop("fxquant")
    if version.scalar() != VERSION or isinstance(version.scalar(), bool):
        raise version.error(
            f"this is version {version.shown} of the format; this fxquant reads {VERSION}"
        )
    return found


def read_record(part: Part, kind: type[T], base: T | None = None) -> T:
    """A frozen record of a dataclass; fields that are not given are those of `base`."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return _make(part, kind, part.only(names), hints, base)


def _make(
    part: Part, kind: type[T], given: dict[str, Part], hints: dict[str, Any], base: T | None
) -> T:
    settings = {name: read(value, hints[name]) for name, value in given.items()}
    try:
        if base is not None:
            return dataclasses.replace(base, **settings)  # type: ignore[type-var]
        return kind(**settings)
    except TypeError as error:  # a field without a default
        missing = ", ".join(f"'{name}'" for name in hints if name not in given)
        raise part.error(f"{kind.__name__} needs {missing}, too") from error
    except FxQuantError as error:
        raise part.error(str(error)) from error


def read(part: Part, hint: Any) -> Any:
    """What stands at `part`, as a type says it must be."""
    for kind, records in KINDS:
        if hint == kind:
            return _read_kind(part, records)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_record(part, hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return tuple(read(item, inner[0]) for item in part.items())
    if origin is Literal:
        return _one_of(part, inner)
    if origin in (typing.Union, types.UnionType):
        return read(part, _member(part, inner))
    return _read_scalar(part, hint)


def _member(part: Part, members: tuple[Any, ...]) -> Any:
    """The member of a union that what stands here may be."""
    if type(None) in members and part.node.id == "scalar" and part.scalar() is None:
        return type(None)
    for kind, _ in KINDS:
        if set(typing.get_args(kind) or (kind,)) <= set(members):
            return kind
    records = [m for m in members if dataclasses.is_dataclass(m)]
    others = [m for m in members if m not in records and m is not type(None)]
    return records[0] if records and (part.node.id == "mapping" or not others) else others[0]


def _read_scalar(part: Part, kind: type) -> Any:
    value = part.scalar()
    if kind is float and type(value) is int and is_number(value):
        return float(value)
    if kind is float and isinstance(value, str):  # as YAML takes 1e-3 to be
        with suppress(ValueError):
            return float(value)
    if kind is type(None) or type(value) is kind:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise part.error(f"{names[kind]} belongs here, not {part.shown}")


def _one_of(part: Part, allowed: Sequence[Any]) -> Any:
    value = part.scalar()
    if value not in allowed:
        near = near_misses(str(value), [str(a) for a in allowed])
        raise part.error(f"{part.shown} is none of {', '.join(map(str, allowed))}{near}")
    return value


def _read_kind(part: Part, kinds: Sequence[type[Any]]) -> Any:
    """One of several records: its name alone, or its name under 'kind' and its fields."""
    by_name = {kind.__name__: kind for kind in kinds}
    given = {} if part.node.id == "scalar" else part.entries()
    if part.node.id != "scalar" and "kind" not in given:
        raise part.error(f"'kind' is missing, one of {', '.join(by_name)}")
    kind = by_name[_one_of(given.pop("kind", part), list(by_name))]
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if part.node.id != "scalar":
        part.only(("kind", *names))
    return _make(part, kind, given, {name: hints[name] for name in names}, None)


# ------------------------------------------------------------------------ to YAML


def plain(value: Any) -> Any:
    """A record as YAML has it: mappings, lists and single values; None is left out."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = dict(_fields(value))
    if not any(isinstance(value, records) for _, records in KINDS):
        return fields
    return {"kind": type(value).__name__, **fields} if fields else type(value).__name__


def _fields(record: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is not None:
            yield field.name, plain(value)


def write_file(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write a document of ours, whole or not at all."""
    with needs_extra("yaml"):
        import yaml
    text = yaml.safe_dump(
        {"fxquant": VERSION, **parts}, sort_keys=False, allow_unicode=True, width=100
    )
    write_whole(path, text.encode())
