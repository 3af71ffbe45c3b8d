"""What the site makes of docstrings and links; the site as a whole is built by .ci/run."""

import re

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is in the extra `docs`")

from tools import docstrings, pages

COLUMNS = """\
What it is.

path, operator
             which calls
activation   the integers of their outputs:
             a scheme
too_long_here yes

    real      y = x
    integer   q = x
"""
TERMS = """\
What it is.

`path`, `operator`
:   
    which calls

`activation`
:   the integers of their outputs:
    a scheme

`too_long_here`
:   yes

    real      y = x
    integer   q = x
"""


def test_columns_become_terms_and_pictures_stay():
    assert docstrings.as_terms(COLUMNS) == TERMS


@pytest.mark.parametrize("text", ["One line.", "Two\nlines.", "a b\n  c d", "    x  y\n    z  w"])
def test_prose_stays(text: str):
    assert docstrings.as_terms(text) == text


def test_docstrings_are_as_indented_as_they_stand(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""First.\n\n    a picture\n"""\n\nclass A:\n    """Of A.\n\n        b\n    """\n'
    )
    assert docstrings.indented(path) == {1: "First.\n\n    a picture", 7: "Of A.\n\n    b"}


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("[a](../tests/laws.py)", ["tests/laws.py"]),
        ("[a](../passes/fold_bn.py#x)", ["passes/fold_bn.py"]),
        ("[a](zoo.md)", []),
        ("[a](https://example.org/x.py)", []),
        ("[a](#here)", []),
        ("[a](../nothing.py)", []),
        ("[a](../../outside.py)", []),
    ],
)
def test_files_that_a_page_links_to(link: str, found: list[str]):
    assert list(pages.linked_files(link, "docs/peers.md")) == found


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("passes/fold_bn.py", "reference/passes/fold_bn.md"),
        ("fxquant/ops/linear.py", "reference/operators/linear.md"),
        ("fxquant/sites/width.py", "files/fxquant/sites/width.py.md"),
        ("docs/guides/see.md", "guides/see.md"),
        ("SECURITY.md", "project/security.md"),
    ],
)
def test_the_page_of_a_file(source: str, page: str):
    assert pages.page_of(source) == page


def test_links_to_pages_that_are_made_lead_somewhere():
    made = (*pages.passes(), *pages.operators(), *pages.modules())
    there = {page.uri for page in (pages.api(), pages.command_line(), *made)}
    for path in pages.DOCS.rglob("*.md"):
        linked = re.findall(r"\]\((?:\.\./)*(reference/[^)#]+)", path.read_text())
        assert there.issuperset(linked), path


def test_every_operator_has_a_page():
    assert {spec for _, specs in pages.operator_files() for spec in specs} == set(
        pages.fxquant.ops.OPS
    )


def test_every_example_is_listed_with_what_starts_it():
    text = pages.examples().text
    for path in (pages.ROOT / "examples").glob("[0-9]*.py"):
        assert f"(../examples/{path.name})" in text
        starts = rf"^(python|torchrun|accelerate launch) .*examples/{path.name}"
        assert re.search(starts, text, re.MULTILINE)


def test_an_unlisted_page_is_found():
    found = pages.unlisted([{"Start": "index.md"}, {"Reference": [{"The zoo": "zoo.md"}]}])
    assert "peers.md" in found
    assert "concepts/flow.md" in found
    assert not {"index.md", "zoo.md"} & set(found)


def test_equations_are_mathml():
    assert pages.equation(r"\frac{a}{b}").startswith("<math")
