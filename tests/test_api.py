"""The public functions: what they take, what they refuse, and in which words."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant.errors import CaptureError, ConfigError, RecipeError, StageError
from fxquant.graph.edit import get_attribute, set_parameter
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FoldBatchNorm, FuseConvBnRelu, LowerToInteger
from fxquant.pipeline import Recipe, RewritePass, Stage, history
from tests import laws
from tests.strategies import chain


def test_prepare_qat_needs_a_float_module():
    prepared = fxquant.prepare_qat(chain("conv").build())
    with pytest.raises(StageError, match="a float model, got a _Net, a fake-quant graph.\nWhat"):
        fxquant.prepare_qat(prepared)
    with pytest.raises(CaptureError, match="takes an nn.Module, got a str"):
        fxquant.prepare_qat("resnet18")


def test_convert_needs_a_prepared_model():
    model = chain("conv").build()
    with pytest.raises(StageError, match="what prepare_qat returned, got a _Net.\nWhat"):
        fxquant.convert(model)
    prepared = fxquant.prepare_qat(model)
    laws.settle(prepared)
    quantized = fxquant.convert(prepared)
    with pytest.raises(StageError, match="an integer graph"):
        fxquant.convert(quantized)


def test_an_override_that_matches_nothing_names_near_misses():
    with pytest.raises(ConfigError, match=r"no submodule matches 'classifer'.*'classifier'"):
        fxquant.prepare_qat(
            chain("conv", head=True).build(),
            config=fxquant.QuantConfig(keep_float=("classifer",)),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_norm": "freeze"}, "batch_norm is 'train' or 'fold'"),
        ({"fake_quant": "lsq"}, r"a FakeQuant, such as fxquant.LSQ\(\), got 'lsq'"),
        ({"equalize": True}, "needs batch_norm='fold'"),
        ({"keep_float": "head"}, "a tuple of paths"),
        ({"weight": fxquant.QuantScheme(symmetric=False)}, "weights need a symmetric scheme"),
        ({"activation": 8}, "activation is a QuantScheme.*got 8"),
        ({"activation": fxquant.QuantScheme(per_channel=True)}, "one scale per tensor"),
        ({"first_last_bits": 1}, "2 to 16 bits, got first_last_bits="),
        ({"overrides": fxquant.Override(path="0", weight=4)}, "a tuple of them"),
    ],
)
def test_a_config_checks_itself(settings, message):
    with pytest.raises(ConfigError, match=message):
        fxquant.QuantConfig(**settings)


def test_wrappers_are_taken_off():
    spec = chain("conv", "relu")
    model = spec.build()
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        prepared = fxquant.prepare_qat(wrapped)
        laws.assert_equal(prepared(spec.inputs()), model(spec.inputs()))
        assert f"taken out of {type(wrapped).__name__}" in fxquant.explain(prepared)


def test_a_single_tensor_will_do_as_example_inputs():
    spec = chain("shuffle", "conv")
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs())
    assert prepared(spec.inputs()).shape == spec.inputs().shape


def test_explain_says_what_changed_and_what_was_left_alone():
    prepared = fxquant.prepare_qat(
        chain("conv", "bn", "relu", "bn", "conv").build(), config=laws.CONFIGS["equalize"]
    )
    text = fxquant.explain(prepared)
    assert "8. fold_bn" in text
    assert "steps_1: folded into steps_0" in text
    assert "left alone  steps_3: batch_norm does not let factors through" in text
    assert [record.name for record in history(prepared)] == [
        *("fix_shapes", "canonicalize", "bound_masks", "weigh_terms", "join_adds"),
        *("join_products", "scale_by_parameters", "fold_bn", "fuse_conv_bn_relu"),
        *("insert_observers", "equalize_cross_layer", "insert_fake_quant"),
    ]


def test_a_recipe_in_a_wrong_order_fails_when_made():
    with pytest.raises(
        RecipeError,
        match="recipe 'mine': 'lower_to_integer' needs a fake-quant graph, "
        "but 'fold_bn' before it gives a float graph",
    ):
        Recipe("mine", (FoldBatchNorm(), LowerToInteger()))


def test_copies_and_pickles_keep_what_the_user_had():
    conv = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv)  # one layer, two names
    model.note = "mine"
    prepared = fxquant.prepare_qat(model)
    x = torch.randn(2, 4, 3, 3)
    laws.settle(prepared, x)
    pickled = io.BytesIO()
    torch.save(prepared, pickled)
    pickled.seek(0)
    for again in (
        copy.deepcopy(copy.deepcopy(prepared)),
        torch.load(pickled, weights_only=False),
    ):
        assert again.note == "mine"
        assert type(again).__name__ == "Sequential"
        assert again.state_dict().keys() == prepared.state_dict().keys()
        assert {"0.weight", "2.weight"} < again.state_dict().keys()
        laws.assert_equal(fxquant.convert(again)(x), prepared(x))
        assert "insert_observers" in fxquant.explain(again)


def test_constants_of_the_network_become_integers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(2, 4, 1), nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, x):
            return self.conv(x) + self.table

    prepared = fxquant.prepare_qat(Net())
    x = torch.randn(2, 2, 3, 3)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(x), prepared(x))
    assert quantized.fxquant.table_codes.dtype is torch.uint8
    assert sum(n.name.startswith("quantize") for n in quantized.graph.nodes) == 1


def test_real_numbers_are_of_the_models_dtype():
    spec = chain("conv", "relu", head=True)
    prepared = fxquant.prepare_qat(spec.build().double())
    laws.settle(prepared, spec.inputs().double())
    quantized = fxquant.convert(prepared)
    x = spec.inputs(seed=3).double()
    assert quantized(x).dtype is torch.float64
    laws.assert_equal(quantized(x), prepared(x))


class Spoiler(RewritePass):
    """A pass with a bug: it says that it keeps the function, and doubles a bias."""

    name = "spoiler"
    summary = "spoils"
    needs = gives = Stage.FLOAT

    def match(self, gm, node):
        return (node,) if isinstance(node.kwargs.get("bias"), fx.Node) else None

    def reject(self, gm, match):
        return None

    def rewrite(self, gm, match):
        path = match[0].kwargs["bias"].target
        set_parameter(gm, path, get_attribute(gm, path) * 2)
        return "spoiled"


def test_a_pass_that_changes_the_function_is_undone_and_reported():
    spec = chain("conv", "relu", "conv", head=True)
    gm = trace(spec.build())
    recipe = Recipe("mine", (Canonicalize(), Spoiler(), FuseConvBnRelu()))
    recipe.run(gm, (spec.inputs(),))
    laws.assert_equal(gm(spec.inputs()), spec.build()(spec.inputs()))
    text = fxquant.explain(gm)
    assert "2. spoiler" in text
    assert "left alone  the whole graph: undone: it changed the outputs by" in text
    assert "3. fuse_conv_bn_relu" in text


@pytest.mark.parametrize("name", laws.CONFIGS)
def test_every_pass_checks_itself_when_asked(name):
    spec = chain("conv", "bn", "relu6", "dropout", "conv_depthwise", "bn", "shuffle", head=True)
    config = replace(laws.CONFIGS[name], verify=True)
    prepared = fxquant.prepare_qat(spec.build(), spec.inputs(), config)
    assert not any("undone" in e.text for r in history(prepared) for e in r.left_alone)
    with pytest.raises(ConfigError, match="verify=True needs example_inputs"):
        fxquant.prepare_qat(spec.build(), config=config)


def test_structures_of_outputs_are_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 1)

        def forward(self, x, scale=None):
            y = self.conv(x)
            return {"y": y, "parts": y.chunk(2, 1), "nothing": None, "list": [y, (x, 3)]}

    prepared = fxquant.prepare_qat(Net())
    x = torch.randn(2, 2, 3, 3)
    laws.settle(prepared, x)
    quantized = fxquant.convert(prepared)
    a, b = quantized(x), prepared(x)
    laws.assert_equal([a["y"], a["parts"], a["list"][0]], [b["y"], b["parts"], b["list"][0]])
    assert a.keys() == b.keys()
    assert a["nothing"] is None
    assert torch.equal(a["list"][1][0], x)  # an input that is handed through is not quantized
    assert a["list"][1][1] == 3
    with pytest.raises(AssertionError, match="scale has been specialized"):
        quantized(x, 2.0)  # captured at its default: another value is refused, not ignored


def test_what_is_made_in_inference_mode_trains_as_well():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        inside = torch.randn(2, 3, 6, 6)
        prepared = fxquant.prepare_qat(net, inside)
        prepared(inside)
        quantized = fxquant.convert(prepared)
        assert torch.equal(quantized(inside), prepared.eval()(inside))
    prepared.train()(x).sum().backward()
    quantized.load_state_dict(fxquant.convert(prepared).state_dict())
    assert torch.equal(quantized(x), prepared.eval()(x))
