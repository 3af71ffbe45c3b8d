"""docs/rounding.md says what its tool measures today."""

from __future__ import annotations

import pytest

from fxquant.rounding import ROUNDINGS
from tools import roundings

PAGE = roundings.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [roundings.HEAD, roundings.ENGINES, roundings.GAPS])
def test_what_is_written_by_hand_is_on_the_page(part: str):
    assert part in PAGE


def test_the_figures_of_the_modes_are_current():
    assert roundings.modes() in PAGE


def test_every_mode_has_its_formula():
    rows = [line.split("|")[1].strip() for line in roundings.HEAD.splitlines() if "|" in line]
    assert [f"`{rounding.name}`" for rounding in ROUNDINGS] == rows[2:8]


@pytest.mark.slow
def test_the_figures_of_the_engines_are_current():
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `engines`")
    pytest.importorskip("ai_edge_litert", reason="LiteRT is in the extra `engines`")
    assert roundings.gaps() in PAGE
