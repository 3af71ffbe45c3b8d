"""For the site: docstrings as they stand in the source, columns of settings as a list of terms.

    before   bits      how many                after   bits
             signed    whether below zero              :   how many
                       counts                          …

A docstring is written to be read in the source. Markdown would run its columns together, and griffe
moves a picture to the margin where nothing but pictures follow the first line.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

from griffe import Extension, Object

NAMES = r"[\w*]+(?:, [\w*]+)*"


class AsWritten(Extension):
    """Rewrites each docstring that griffe collects."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Any module, class, function or attribute."""
        if obj.docstring and isinstance(obj.filepath, Path):
            text = indented(obj.filepath).get(obj.docstring.lineno or 0, obj.docstring.value)
            obj.docstring.value = as_terms(text)


@cache
def indented(path: Path) -> dict[int, str]:
    """The docstrings of a file by their first lines, indented as much as behind their quotes."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            raw = ast.get_docstring(node, clean=False)
            if raw is not None:
                margin = re.compile(f"^ {{{node.body[0].col_offset}}}", re.MULTILINE)
                found[node.body[0].lineno] = margin.sub("", raw).rstrip()
    return found


def as_terms(text: str) -> str:
    """A docstring with every paragraph that is in columns written as terms."""
    return "\n\n".join(_terms(paragraph) or paragraph for paragraph in text.split("\n\n"))


def _terms(paragraph: str) -> str | None:
    """The terms of a paragraph in columns, or None where it is not."""
    lines = paragraph.split("\n")
    # the second column begins behind two spaces, or where the line after a long name does
    begins = re.match(rf"({NAMES} {{2,}})\S", lines[0]) or (
        re.fullmatch(NAMES, lines[0]) and re.match(r"( {4,})\S", "".join(lines[1:2]))
    )
    if not begins:
        return None
    terms: list[str] = []
    for line in lines:
        row = re.fullmatch(rf"({NAMES})(?: +\S.*)?", line)
        if row and not line[len(row[1]) : len(begins[1])].strip():
            names = ", ".join(f"`{name}`" for name in row[1].split(", "))
            terms += ["", names, f":   {line[len(row[1]):].strip()}"]
        elif line.startswith(" " * 2):
            terms.append(f"    {line.strip()}")
        else:
            return None
    return "\n".join(terms).strip()
