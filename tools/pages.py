"""The pages of the site that nobody writes: a hook of MkDocs, named in mkdocs.yml.

    passes/fold_bn.py        reference/passes/fold_bn.md       its docstring, facts, code
    fxquant/ops/linear.py    reference/operators/linear.md     the same
    fxquant.__all__          reference/api.md                  every public name
    examples/*.py            examples.md                       what each says of itself
    ARCHITECTURE.md          project/architecture.md           as it stands
    ../tests/laws.py         files/tests/laws.py.md            each file that a page links to

A page of the repository links to files beside it; on the site such a link leads to the page that
shows the file. What is not there stays as it is, and MkDocs warns.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import logging
import os
import pkgutil
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import fxquant
import fxquant.cli
import fxquant.errors
import fxquant.ops
from fxquant.ops.spec import OpSpec
from fxquant.passes import PASSES
from fxquant.pipeline import Pass

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
log = logging.getLogger("mkdocs.hooks.pages")  # a warning of it ends a strict build

# A file of the repository -> its page on the site.
PROJECT = {
    f"{name}.md": f"project/{name.lower()}.md"
    for name in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "SECURITY")
} | {"README.md": "index.md"}

# What those who extend fxquant meet, beside the public names.
MODULES = (
    "fxquant.pipeline",
    "fxquant.recipes",
    "fxquant.schemes",
    "fxquant.rounding",
    "fxquant.intmath",
    "fxquant.observers",
    "fxquant.fake_quant",
    "fxquant.graph.trace",
    "fxquant.graph.edit",
    "fxquant.ops.spec",
    "fxquant.sites.flow",
    "fxquant.darts",
)

NOT_FOUND = "---\nsearch:\n  exclude: true\n---\n\n"  # by search: it is code
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")  # relative ones: no colon of a scheme


class Made(NamedTuple):
    """A page that is made: its title, where it stands, its text."""

    title: str
    uri: str
    text: str


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation, and what mkdocs.yml has not listed yet to
    its end; ```math becomes MathML.
    """
    fence = {"name": "math", "class": "math", "format": equation}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    for section in config.nav or ():
        if "Reference" in section:
            section["Reference"] += [
                {"Passes": _entries(passes())},
                {"Operators": _entries(operators())},
                {"Modules": _entries(modules())},
            ]
    if config.nav and unlisted(config.nav):
        config.nav.append({"More": unlisted(config.nav)})
    return config


def unlisted(nav: list[Any]) -> list[str]:
    """The pages of docs/ that a navigation does not name."""
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    return sorted(there - set(_listed(nav)))


def _listed(nav: list[Any]) -> Iterator[str]:
    """The pages that a navigation names, at any depth."""
    for entry in nav:
        values = entry.values() if isinstance(entry, dict) else [entry]
        for value in values:
            yield from _listed(value) if isinstance(value, list) else [value]


def equation(source: str, *options: object, **more: object) -> str:
    """LaTeX as MathML, which browsers draw by themselves."""
    return latex2mathml.converter.convert(source, display="block")


def _entries(pages: list[Made]) -> list[dict[str, str]]:
    return [{page.title: page.uri} for page in pages]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made, then the files that any page links to."""
    for source, uri in PROJECT.items():
        if files.get_file_from_path(uri) is None:
            _add(files, config, uri, (ROOT / source).read_text())
    for page in (api(), command_line(), examples(), *passes(), *operators(), *modules()):
        _add(files, config, page.uri, page.text)
    waiting = list(files.documentation_pages())
    while waiting:  # a linked page may link on
        file = waiting.pop()
        for source in linked_files(file.content_string, source_of(file.src_uri)):
            uri = page_of(source)
            if files.get_file_from_path(uri) is None:
                waiting.append(_add(files, config, uri, shown(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages."""
    source = source_of(page.file.src_uri)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it is alone in its section

    def to_page(link: re.Match[str]) -> str:
        target = _target(link[1], source)
        if target is None:
            return link[0]
        uri = posixpath.relpath(page_of(target), posixpath.dirname(page.file.src_uri))
        return f"]({uri}{link[2] or ''})"

    return LINK.sub(to_page, markdown)


def _add(files: Files, config: MkDocsConfig, uri: str, text: str) -> File:
    file = File.generated(config, uri, content=text)
    if uri.startswith("files/"):
        file.inclusion = type(file.inclusion).NOT_IN_NAV
    files.append(file)
    return file


# --- files of the repository ----------------------------------------------------------------------


def source_of(uri: str) -> str:
    """The file of the repository that a page shows, as its links see it."""
    known = {page: source for source, page in PROJECT.items() if page != "index.md"}
    if uri in known:
        return known[uri]
    return uri[len("files/") : -len(".md")] if uri.startswith("files/") else f"docs/{uri}"


def page_of(source: str) -> str:
    """The page that shows a file of the repository."""
    path = Path(source)
    if source in PROJECT:
        return PROJECT[source]
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.parent == Path("passes") and path.stem in {step.name for step in PASSES}:
        return f"reference/passes/{path.stem}.md"
    if path.parent == Path("fxquant/ops") and path.stem in dict(operator_files()):
        return f"reference/operators/{path.stem}.md"
    return f"files/{source}.md"


def linked_files(markdown: str, source: str) -> Iterator[str]:
    """The files of the repository that a page links to and that lie outside docs/."""
    for link in LINK.finditer(markdown):
        target = _target(link[1], source)
        if target is not None and not target.startswith("docs/"):
            yield target


def _target(link: str, source: str) -> str | None:
    """The file of the repository that a link of `source` means, or None."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def shown(source: str) -> str:
    """A file as a page: Markdown as it stands, anything else as code."""
    text = (ROOT / source).read_text()
    return text if source.endswith(".md") else f"{NOT_FOUND}# `{source}`\n\n{_code(source)}"


def _code(source: str) -> str:
    language = {".py": "python", ".toml": "toml", ".yml": "yaml"}.get(Path(source).suffix, "text")
    return f"``````{language}\n{(ROOT / source).read_text()}``````\n"


def _folded(source: str) -> str:
    """A file as code that opens with a click."""
    code = "".join(f"    {line}" for line in _code(source).splitlines(keepends=True))
    # a section of its own, which search leaves out: it would show code before words
    return f'## Its code {{ data-search-exclude }}\n\n??? example "{source}"\n\n{code}'


# --- examples -------------------------------------------------------------------------------------


def examples() -> Made:
    """Each example, by what its docstring says first: what it is, and how to run it."""
    parts = [
        "# Examples\n\nScripts to read and to run, from any folder, after "
        "`pip install -e '.[demo]'`; those that need more say so. A test runs each.\n"
    ]
    for path in sorted((ROOT / "examples").glob("[0-9]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        what, _, how = text.partition("\n\n")
        commands = how.partition("\n\n")[0]
        parts.append(
            f"## {path.stem}\n\n{what} [Its code](../examples/{path.name}).\n\n"
            f"```sh\n{inspect.cleandoc(commands)}\n```\n"
        )
    return Made("Examples", "examples.md", "\n".join(parts))


# --- passes, operators, names ---------------------------------------------------------------------


def passes() -> list[Made]:
    """A page a pass, in the order in which they run."""
    head = "# Passes\n\nIn the order of the [recipes](../modules/recipes.md).\n\n"
    head += "| pass | what it does | needs | keeps |\n| --- | --- | --- | --- |\n"
    rows = "".join(
        f"| [{step.name}]({step.name}.md) | {step.summary} | {step.needs.value} | "
        f"{step.keeps.value} |\n"
        for step in PASSES
    )
    index = Made("All", "reference/passes/index.md", head + rows)
    return [index, *(_pass(step) for step in PASSES)]


def _pass(step: type[Pass]) -> Made:
    module = step.__module__
    text = f"""\
# {step.name}

::: {module}
    options:
      members: []
      show_root_heading: false
      show_root_toc_entry: false

- It needs {step.needs.value}, and gives {step.gives.value}.
- In which modes it keeps the function: {step.keeps.value}.
{_tests(f"tests/passes/test_{step.name}.py")}
::: {module}.{step.__name__}
    options: {{ members: [] }}

{_folded(f"passes/{step.name}.py")}"""
    return Made(step.name, f"reference/passes/{step.name}.md", text)


def _tests(source: str) -> str:
    there = (ROOT / source).is_file()
    return f"- Its tests: [{source}](../../../{source}).\n" if there else ""


def operators() -> list[Made]:
    """A page a file of operators."""
    head = "# Operators\n\nEach has an integer form. How far each lies from the real one is "
    head += "[measured](../../operators.md).\n\n| operator | spelled as |\n| --- | --- |\n"
    rows = "".join(
        f"| [{spec.name}]({stem}.md) | {_spelled(spec)} |\n"
        for stem, specs in operator_files()
        for spec in specs
    )
    index = Made("All", "reference/operators/index.md", head + rows)
    return [index, *(_operator(stem, specs) for stem, specs in operator_files())]


@cache
def operator_files() -> list[tuple[str, list[OpSpec]]]:
    """Each file of fxquant/ops with an operator's record, and its records."""
    found = []
    for info in pkgutil.iter_modules(fxquant.ops.__path__):
        module = importlib.import_module(f"fxquant.ops.{info.name}")
        names = re.findall(r"^([A-Z]\w+) = ", inspect.getsource(module), re.MULTILINE)
        specs = [getattr(module, name) for name in names]
        specs = [spec for spec in specs if isinstance(spec, OpSpec)]
        if specs:
            found.append((info.name, specs))
    return found


def _operator(stem: str, specs: list[OpSpec]) -> Made:
    rows: tuple[tuple[str, Callable[[OpSpec], str]], ...] = (
        ("spelled as", _spelled),
        ("its output has", lambda spec: spec.output.value),
        ("a range known beforehand", lambda spec: str(spec.range or "")),
        ("output channels of its weight", lambda spec: _axis(spec.weight_axis)),
        ("f(c·x) = c·f(x) for c > 0", lambda spec: "yes" if spec.homogeneous else "no"),
    )
    table = f"| | {' | '.join(spec.name for spec in specs)} |\n{'| --- ' * (len(specs) + 1)}|\n"
    table += "".join(f"| {head} | {' | '.join(map(of, specs))} |\n" for head, of in rows)
    text = f"""\
# {stem}

::: fxquant.ops.{stem}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_if_no_docstring: false

{table}
{_folded(f"fxquant/ops/{stem}.py")}"""
    return Made(stem, f"reference/operators/{stem}.md", text)


def _axis(axis: int | None) -> str:
    return "it has no weight" if axis is None else f"axis {axis}"


def _spelled(spec: OpSpec) -> str:
    names = [f"nn.{module.__name__}" for module in spec.modules]
    names += [_function_name(function) for function in spec.functions]
    names += [f"x.{method}" for method in spec.methods]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names)) or "passes put it in"


def _function_name(function: Any) -> str:
    module = getattr(function, "__module__", None) or "torch"
    short = {"torch.nn.functional": "F", "torch._C._nn": "F", "_operator": "operator"}
    return f"{short.get(module, module)}.{function.__name__}"


def api() -> Made:
    """Every public name: functions, records, errors."""
    values = {name: getattr(fxquant, name) for name in fxquant.__all__}
    for name, value in values.items():
        if not inspect.getdoc(value):
            log.warning("fxquant.%s has no docstring", name)
    functions = [name for name, value in values.items() if inspect.isfunction(value)]
    errors = {name for name, _ in _errors()}
    records = [name for name in values if name not in {*functions, *errors}]
    parts = ["# Public names\n\nAll that `import fxquant` offers.\n"]
    for title, names in (("Functions", functions), ("Records", records)):
        parts.append(f"## {title}\n")
        parts += [_entry(f"{values[name].__module__}.{name}") for name in names]
    parts.append("## Errors\n\nAll that fxquant raises on purpose derive from the first.\n")
    parts += [_entry(f"fxquant.errors.{name}") for name, _ in _errors()]
    return Made("Public names", "reference/api.md", "\n".join(parts))


def _entry(path: str) -> str:
    return f"::: {path}\n    options: {{ heading_level: 3, show_bases: true }}\n"


def _errors() -> list[tuple[str, type]]:
    return [
        (name, value)
        for name, value in vars(fxquant.errors).items()
        if inspect.isclass(value) and issubclass(value, fxquant.FxQuantError)
    ]


def command_line() -> Made:
    """What each command says of itself."""
    said = _help()
    commands = re.findall(r"^│ ([a-z][\w-]*) ", said.partition("─ Commands ─")[2], re.MULTILINE)
    texts = {"": said, **{f" {command}": _help(command) for command in commands}}
    parts = [f"## fxquant{name}\n\n```text\n{text}\n```\n" for name, text in texts.items()]
    return Made(
        "Command line", "reference/command_line.md", "\n".join(["# Command line\n", *parts])
    )


def _help(*command: str) -> str:
    """What `fxquant <command> --help` prints."""
    arguments = ["fxquant", *command, "--help"]
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.dict(os.environ, {"COLUMNS": "96"}),
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.suppress(SystemExit),
    ):
        fxquant.cli.main()
    text = said.getvalue().replace("python -m mkdocs.", "")  # click names who runs it
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def modules() -> list[Made]:
    """A page a module that those meet who extend fxquant."""
    return [_module(importlib.import_module(name)) for name in MODULES]


def _module(module: ModuleType) -> Made:
    short = module.__name__.removeprefix("fxquant.")
    elsewhere = [f"!^{name}$" for name in fxquant.__all__ if hasattr(module, name)]  # public names
    text = f"""\
# {module.__name__}

::: {module.__name__}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_if_no_docstring: false
      filters: {["!^_", *elsewhere]}
"""
    return Made(short, f"reference/modules/{short}.md", text)
