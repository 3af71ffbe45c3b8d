"""verify: a graph that a broken pass would leave behind is refused, and the place is named."""

import pytest

import fxquant
from fxquant.errors import VerifyError
from fxquant.fake_quant import ObservedWeight
from fxquant.graph.edit import replace_site
from fxquant.ops import op_named
from fxquant.passes import InsertFakeQuant, InsertObservers
from fxquant.schemes import INT8_WEIGHT, Channels
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import sites
from fxquant.sites.verify import verify_fake_quant, verify_integer, verify_observed
from tests import laws
from tests.strategies import NetSpec, Step

# conv and a sum have ranges of their own, a pool has not, a shuffle is only moved
SPEC = NetSpec((Step("conv"), Step("avg_pool"), Step("shuffle"), Step("add", (0, 2))))


def observed():
    gm = laws.graph_before(InsertFakeQuant(), SPEC.build(), laws.CONFIGS["train"])
    return gm, by_operator(gm)


def fake_quantized():
    gm = fxquant.prepare_qat(SPEC.build())
    return gm, by_operator(gm)


def integer():
    gm = fxquant.prepare_qat(SPEC.build())
    laws.settle(gm)
    return fxquant.convert(gm)


def by_operator(gm):
    return {site.op.name: site for _, site in sites(gm)}


def node_named(gm, name):
    return next(node for node in gm.graph.nodes if node.name == name)


def let_all_read_the_input(gm):
    entrance = node_named(gm, "quantize_x")
    entrance.replace_all_uses_with(entrance.args[0])


def test_sound_graphs_pass():
    verify_observed(observed()[0])
    verify_fake_quant(fake_quantized()[0])
    verify_integer(integer())


def test_a_float_graph_is_no_observed_one():
    gm = laws.graph_before(InsertObservers(), SPEC.build(), laws.CONFIGS["train"])
    with pytest.raises(VerifyError, match="'steps_0'.* reads a float value"):
        verify_observed(gm)


@pytest.mark.parametrize("name", ["conv2d", "add"])
def test_an_observer_is_missing(name):
    gm, found = observed()
    found[name].output = None
    with pytest.raises(VerifyError, match="has no observer"):
        verify_observed(gm)


def test_a_site_reads_a_float_value():
    gm, _ = fake_quantized()
    let_all_read_the_input(gm)
    with pytest.raises(VerifyError, match="reads 'x', which is no integer value"):
        verify_fake_quant(gm)


@pytest.mark.parametrize("wrong", ["none", "one too few", "one too many", "another's"])
def test_a_site_has_other_quantizers_than_its_inputs(wrong):
    gm, found = fake_quantized()
    site = found["add"]
    first, second = site.sources
    site.sources = {
        "none": (),
        "one too few": (first,),
        "one too many": (first, second, first),
        "another's": (first, site.output),
    }[wrong]
    with pytest.raises(VerifyError, match="has other quantizers than its inputs"):
        verify_fake_quant(gm)


def test_a_fake_quant_is_missing():
    """Of the sum, which no other site reads."""
    gm, found = fake_quantized()
    found["add"].output = found["add"].output.observer
    with pytest.raises(VerifyError, match="has no fake-quant"):
        verify_fake_quant(gm)


def test_a_weight_quantizer_is_missing_or_one_too_many():
    gm, found = fake_quantized()
    found["conv2d"].weight_quant = None
    with pytest.raises(VerifyError, match="'steps_0'.* has no weight quantizer, or one too many"):
        verify_fake_quant(gm)
    gm, found = fake_quantized()
    found["add"].weight_quant = ObservedWeight(INT8_WEIGHT, Channels())
    with pytest.raises(VerifyError, match="has no weight quantizer, or one too many"):
        verify_fake_quant(gm)


@pytest.mark.parametrize("name", ["steps_0", "quantize_x"])
def test_a_site_that_was_not_lowered(name):
    gm = integer()
    left = CallSite(op_named("relu")) if name == "steps_0" else InputQuantizer(None)
    replace_site(gm, node_named(gm, name), left)
    with pytest.raises(VerifyError, match=f"'{name}'.* was not lowered"):
        verify_integer(gm)


def test_an_integer_operator_reads_a_float():
    gm = integer()
    let_all_read_the_input(gm)
    with pytest.raises(VerifyError, match="'steps_0'.* reads the float value 'x'"):
        verify_integer(gm)
    gm = integer()
    last = node_named(gm, next(n.name for n in gm.graph.nodes if n.name.startswith("add")))
    last.args = (last.args[0], node_named(gm, "x"))  # only the second
    with pytest.raises(VerifyError, match="reads the float value 'x'"):
        verify_integer(gm)
