"""Every Python snippet of the pages runs, and prints what the page says that it prints.

    ```python    runs; those of a page share their names, and a folder that is theirs
    ```output    all that was printed since the last such block; … stands for anything
    ```figures   the same, but numbers may differ: they come from training, or take time
    <!-- skip: next "why" -->    in front of the code of a tool that is not installed here
"""

import contextlib
import re
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from fxquant.errors import MissingExtraError

ROOT = Path(__file__).parent.parent
OPTIONAL = ("torchvision", "sklearn", "onnx", "onnxruntime", "lightning", "accelerate")

Printed = pytest.CaptureFixture[str]


def pages() -> list[Path]:
    """README.md and the pages of docs/ in which Python stands."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if "```python" in path.read_text()]


def document(path: Path, printed: Printed) -> Document:
    def check(example: Example) -> None:
        was, said = printed.readouterr().out, str(example.parsed)
        assert agrees(said, was), f"{path}:{example.line} says\n{said}\nbut it printed\n{was}"

    def check_all_but_numbers(example: Example) -> None:
        was, said = printed.readouterr().out, str(example.parsed)
        same = agrees(without_numbers(said), without_numbers(was))
        assert same, f"{path}:{example.line} says\n{said}\nbut it printed\n{was}"

    return Document.parse(
        str(path),
        PythonCodeBlockParser(),
        SkipParser(),
        CodeBlockParser("output", check),
        CodeBlockParser("figures", check_all_but_numbers),
    )


def agrees(said: str, printed: str) -> bool:
    """Whether that is what was printed, spaces at the ends of lines aside."""
    parts = map(re.escape, re.split("…", _lines(said)))
    return re.fullmatch(".*?".join(parts), _lines(printed), re.DOTALL) is not None


def without_numbers(text: str) -> str:
    """Each number as #, and one space for several: columns are as wide as their numbers."""
    return re.sub(r"[ \t]+", " ", re.sub(r"-?\d[\d.,]*(e-?\d+)?", "#", text))


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch 2.13's own compiler
# Lightning's words: of torch's pytrees, of loaders without workers
@pytest.mark.filterwarnings("ignore:.*(isinstance.treespec|TreeSpec|LeafSpec)")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.chdir(tmp_path)
    page = document(path, capsys)
    page.namespace["__name__"] = "snippet"
    for example in page.examples():
        try:
            with contextlib.suppress(SkipTest):
                example.evaluate()
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{error.name} is not installed")
        except MissingExtraError as error:
            pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize(
    ("said", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a…c", "abc", True),
        ("a\n…\nd", "a  \nb\nc\nd\n", True),
        ("a", "a\nb", False),
        ("a b", "a  b", False),
        ("…", "", True),
        ("(a+)", "aaa", False),
    ],
)
def test_agrees(said: str, printed: str, same: bool):
    assert agrees(said, printed) is same


def test_numbers_aside():
    assert without_numbers("a  -1.5 of 1,024") == without_numbers("a  2e-05 of 7") == "a # of #"


def test_no_snippet_goes_by_another_name():
    """Python under another name would not run."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"^\s*```(py|python3|pycon|Python)\b(?!thon)", path.read_text(), re.M)
