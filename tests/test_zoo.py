"""benchmarks/zoo.py on a sample: integers throughout, equal to eval(), trained a step."""

import pytest

pytest.importorskip("torchvision", reason="the networks are torchvision's: pip install torchvision")
import zoo

SAMPLE = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "swin_t"),
    "vit_b_32",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_integers_throughout(name):
    row = zoo.measure(name, calibration=1, batch=4)
    assert row["float"] == []
    assert row["without_gradient"] == []
    assert (row["mismatches"], row["mismatches_after_a_step"]) == (0, 0)


def test_the_page_tells_what_went_wrong():
    bad = {"network": "one", "error": "no such thing"}
    good = {
        "network": "two", "size": 32, "nodes": 7, "prepare_seconds": 0.1, "convert_seconds": 0.1,
        "float": [], "mismatches": 0, "mismatches_after_a_step": 0, "decibels": 31.0,
        "input_decibels": 40.0,
    }
    page = zoo.page([bad, good])
    assert "**1 of 2** are integers throughout" in page
    assert "| one | | | | | no such thing |" in page
