"""benchmarks/zoo_trained.py: its page says what is below 30 dB, and why."""

import pytest

pytest.importorskip("torchvision", reason="the networks are torchvision's: pip install torchvision")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install scikit-learn")
import zoo_trained

ROW = {
    "size": 32, "steps": 400, "decibels": 40.0, "input_decibels": 41.0, "float_top_1": 0.5,
    "top_1": 0.5, "mismatches": 0,
}
WHY = {
    "median_decibels": 25.0, "one_image": 0.75, "seen_decibels": 24.0, "values": 7,
    "values_decibels": 21.0, "worst_value": "conv1", "worst_decibels": 33.0,
}


def test_page():
    good = ROW | {"network": "one", "train_seconds": 120}
    bad = ROW | {"network": "two", "decibels": 20.0, "why": WHY}
    before = ROW | {"network": "three", "decibels": 29.0}
    failed = {"network": "four", "error": "no such thing"}
    ignorant = ROW | {"network": "five", "decibels": 60.0, "float_top_1": 0.1, "mismatches": 3}
    page = zoo_trained.page([good, bad, before, failed, ignorant])
    assert "1 of 80 have 30 dB or more. The median of the 3" in page
    assert "**29.0 dB** (input: 41.0 dB)" in page
    assert "3 logits of all differ" in page
    assert "| one | 32 | 400 | 120 | 40.0 dB |" in page
    assert "| four | | | | no such thing |" in page
    _, below = page.split("## Below 30 dB")
    assert "| two | 20.0 dB | 25.0 dB | 75% | 24.0 dB | 7 | 21.0 dB | `conv1` | 33.0 dB |" in below
    assert "| three | 29.0 dB | | | | | | not asked yet | |" in below
    assert "one |" not in below.split("|---|")[-1]
