"""The graph before and after each pass."""

import os

import pytest

import fxquant
from fxquant import QuantConfig
from fxquant.errors import ConfigError
from fxquant.pipeline import history
from tests import laws
from tests.see.test_visualize import data_of
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "bn", "conv", "relu", head=True)
FOLDED = QuantConfig(batch_norm="fold")


@pytest.fixture(scope="module")
def watched():
    with fxquant.watch_passes() as passes:
        prepared = fxquant.prepare_qat(SPEC.build(), SPEC.inputs(), FOLDED)
        laws.settle(prepared)
        quantized = fxquant.convert(prepared)
    return passes, quantized


def test_every_pass_is_a_step(watched):
    passes, quantized = watched
    assert [step.record for step in passes.steps] == list(history(quantized))
    for step, following in zip(passes.steps, passes.steps[1:], strict=False):
        assert following.record.name == "lower_to_integer" or step.after is following.before
    for step in passes.steps:
        assert len(step.before) == step.record.nodes_before
        assert len(step.after) == step.record.nodes_after


def test_what_a_step_added_removed_and_changed(watched):
    steps = {step.record.name: step for step in watched[0].steps}
    assert {"steps_1", "steps_2"} <= set(steps["fold_bn"].before)
    assert "steps_1" in steps["fold_bn"].removed
    assert "steps_2" in steps["fuse_conv_bn_relu"].removed
    observed = steps["insert_observers"]
    assert observed.added == ("quantize_x",)
    assert "steps_0" in steps["fuse_conv_bn_relu"].changed
    assert steps["join_adds"].added == steps["join_adds"].removed == ()


def test_the_page_tells_a_graph_once(watched, tmp_path):
    passes, _ = watched
    passes.save(tmp_path / "passes.html")
    assert os.listdir(tmp_path) == ["passes.html"]
    told = data_of((tmp_path / "passes.html").read_text())["steps"]
    assert [step["name"] for step in told] == [step.record.name for step in passes.steps]
    assert told[0]["before"] is not None
    for step in told[1:]:
        assert (step["after"] is None) or step["changed"]
    assert told[-1]["before"] is not None  # ranges were learned in between
    assert any(entry["text"] for step in told for entry in step["left_alone"])


def test_what_happens_outside_is_not_watched(watched):
    passes, _ = watched
    count = len(passes.steps)
    fxquant.prepare_qat(SPEC.build())
    assert len(passes.steps) == count


def test_two_can_watch():
    with fxquant.watch_passes() as outer:
        fxquant.prepare_qat(SPEC.build())
        with fxquant.watch_passes() as inner:
            fxquant.prepare_qat(SPEC.build())
    assert len(outer.steps) == 2 * len(inner.steps) > 0


def test_without_a_pass_and_with_another_ending_it_is_refused(tmp_path):
    with fxquant.watch_passes() as passes:
        pass
    with pytest.raises(ConfigError, match="no pass ran inside watch_passes"):
        passes.save(tmp_path / "passes.html")
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        passes.save(tmp_path / "passes.svg")
    assert not os.listdir(tmp_path)
