"""`fxquant quantize` and its kin, on real digits, and what they refuse."""

import sys

import pytest
import torch
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.cli import main
from fxquant.command.data import Batch, Images
from fxquant.command.models import load_weights, model_named
from fxquant.command.options import CLIPS, Options
from fxquant.command.scores import Scores, evaluate
from fxquant.errors import ConfigError, DataError
from fxquant.observers import ACIQ, KL, MSE, AverageMinMax, MeanStd, MinMax, Percentile
from tests.command.small import network

for package in ("typer", "rich", "sklearn", "yaml"):
    pytest.importorskip(package, reason=f"{package} is in the extra `demo`")

DIGITS = ("--data", "digits", "--size", "16", "--channels", "1", "--limit", "96", "--batch", "32")
SMALL = "tests.command.small:network"


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """The exit code of a command line, and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["fxquant", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr()
    return exit_.value.code or 0, printed.out + printed.err


def test_quantize_evaluate_inspect_and_statistics_of_a_file(monkeypatch, capsys, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is in the extra `save`")
    files = {name: tmp_path / name for name in ("q.safetensors", "s.yaml", "c.yaml", "again.st")}
    weights = tmp_path / "weights.pth"
    state = {f"module.{k}": v for k, v in network().state_dict().items()}
    torch.save({"state_dict": state}, weights)
    code, text = call(
        monkeypatch, capsys, "quantize", SMALL, "--weights", weights, *DIGITS, "--calibrate", "0.5",
        "--clip", "kl", "--out", files["q.safetensors"], "--save-stats", files["s.yaml"],
        "--save-config", files["c.yaml"],
    )
    assert code == 0, text
    assert "loss" in text
    assert "top-5" in text
    assert fxquant.load_config(files["c.yaml"]).calibrator == KL()

    for model in ((files["q.safetensors"],), (SMALL, "--weights", weights)):
        code, text = call(monkeypatch, capsys, "evaluate", *model, *DIGITS)
        assert code == 0, text
        assert "top-1" in text
    code, text = call(
        monkeypatch, capsys, "inspect", files["q.safetensors"], "--passes", "--counts", *DIGITS[2:6]
    )
    assert code == 0, text
    assert "products" in text
    assert "sums are proved to fit" in text
    assert "insert_fake_quant" in text
    code, text = call(
        monkeypatch, capsys, "compare", SMALL, files["q.safetensors"], *DIGITS[:-2],
        "--weights", weights,
    )
    assert code == 0, text

    code, text = call(
        monkeypatch, capsys, "quantize", SMALL, "--config", files["c.yaml"], "--stats",
        files["s.yaml"], "--no-evaluate", "--out", files["again.st"], "--weights", weights,
    )
    assert code == 0, text
    x = next(iter(Images("digits", 16, 1))).images
    first, second = (fxquant.load(files[name]) for name in ("q.safetensors", "again.st"))
    assert torch.equal(first(x), second(x))


def saved(path, rounding="half_up"):
    """A network for digits of 16 × 16, converted and saved."""
    prepared = fxquant.prepare_ptq(network(), config=QuantConfig(rounding=rounding))
    fxquant.calibrate(prepared, [torch.randn(8, 1, 16, 16)])
    fxquant.save(fxquant.convert(prepared), path)
    return path


SIZE = ("--size", "16", "--channels", "1", "--limit", "4")


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("net.onnx", ("--verify", "--data", "digits"), "none differs"),
        ("net.onnx", ("--form", "qdq", "--batch", "3", "--verify"), "none differs"),
        ("net.tflite", ("--verify", "--data", "digits"), "none differs"),
        ("net.pt2", (), ""),
        ("golden", ("--c",), "of every node for 4 images"),
    ],
)
def test_export(monkeypatch, capsys, tmp_path, out, options, says):
    for package in ("onnxruntime", "safetensors"):
        pytest.importorskip(package, reason=f"{package} is in the extras `onnx` and `save`")
    if out == "net.tflite":
        pytest.importorskip("ai_edge_litert", reason="LiteRT is in the extra `litert`")
    rounding = "gemmlowp" if out == "net.tflite" else "half_up"
    rounding = "fp32_rne" if "qdq" in options else rounding
    source = saved(tmp_path / "q.safetensors", rounding)
    code, text = call(monkeypatch, capsys, "export", source, tmp_path / out, *SIZE, *options)
    assert code == 0, text
    assert says in " ".join(text.split())
    written = tmp_path / (out if "." in out else f"{out}/c/network.c")
    assert written.is_file()
    if out == "net.pt2":
        x = torch.randn(3, 1, 16, 16)
        assert torch.equal(torch.export.load(written).module()(x), fxquant.load(source)(x))


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("net.h5", (), "none of .onnx, .tflite and .pt2, nor a folder"),
        ("net.onnx", ("--c",), "--c is for a folder"),
        ("net.pt2", ("--form", "qdq"), "--form is for .onnx"),
        ("golden", ("--verify",), "--verify is for .onnx and .tflite"),
        ("golden", ("--batch", "2"), "--batch is for a file"),
        ("net.onnx", ("--form", "qlinear"), "form is one of 'operators', 'qdq'"),
        ("net.onnx", ("--form", "qdq"), 'QuantConfig(rounding="fp32_rne")'),
        ("net.onnx", ("--limit", "0"), "limit is a positive number"),
        ("net.onnx", ("--channels", "3"), "does not run on a batch"),
        ("no/where/net.onnx", (), "cannot be written"),
        ("no/where/net.pt2", (), "cannot be written"),
        ("no/where/golden", (), "cannot be written"),
    ],
)
def test_an_export_that_is_refused_leaves_nothing(
    monkeypatch, capsys, tmp_path, out, options, message
):
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")
    pytest.importorskip("safetensors", reason="safetensors is in the extra `save`")
    source = saved(tmp_path / "q.safetensors")
    code, text = call(monkeypatch, capsys, "export", source, tmp_path / out, *SIZE, *options)
    assert code == 1, text
    assert message in " ".join(text[text.index("fxquant: ") :].split())
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_other_modes(monkeypatch, capsys, mode):
    code, text = call(monkeypatch, capsys, "quantize", SMALL, *DIGITS, "--mode", mode)
    assert code == 0, text
    assert text.count("top-1") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", "nowhere:f", *DIGITS), "'nowhere:f' gives no model: ModuleNotFoundError"),
        (("quantize", "tests.command.small:number", *DIGITS), "gives no model, but a int"),
        (("quantize", SMALL), "nothing to calibrate or evaluate on"),
        (("quantize", SMALL, "--data", "no/folder"), "'no/folder' is no folder of images"),
        (("quantize", SMALL, *DIGITS, "--clip", "kl2"), "--clip is one of none, average"),
        (("quantize", SMALL, *DIGITS, "--stds", "2"), "--stds needs --clip std"),
        (("quantize", SMALL, *DIGITS, "--percent", "99"), "--percent needs --clip percentile"),
        (("quantize", SMALL, *DIGITS, "--calibrate", "0"), r"share lies in (0, 1]"),
        (("quantize", SMALL, *DIGITS, "--weight-bits", "17"), "1 to 16 bits, got bits=17"),
        (("quantize", SMALL, *DIGITS, "--activation-bits", "1"), "1 bit is the sign of a weight"),
        (("quantize", SMALL, *DIGITS, "--accumulator-bits", "8"), "accumulator_bits is 16 to 32"),
        (("quantize", SMALL, *DIGITS, "--activations", "odd"), "--activations is one of"),
        (("quantize", SMALL, *DIGITS, "--mode", "online"), "mode is 'static', 'dynamic'"),
        (("quantize", SMALL, *DIGITS, "--preset", "int9"), "did you mean 'int8'"),
        (("quantize", SMALL, *DIGITS, "--no-clip", "lay"), "no path matches 'lay'"),
        (("quantize", SMALL, *DIGITS, "--keep-float", "lay"), "no submodule matches 'lay'"),
        (("quantize", SMALL, *DIGITS, "--config", "none.yaml"), "none.yaml cannot be read"),
        (("quantize", SMALL, *DIGITS, "--stats", "none.yaml"), "none.yaml cannot be read"),
        (("quantize", SMALL, *DIGITS, "--weights", "none.pth"), "none.pth holds no weights"),
        (("quantize", SMALL, *DIGITS, "--channels", "3"), "pass example_inputs that it runs on"),
        (("quantize", SMALL, *DIGITS, "--batch", "0"), "batch is a positive number, got 0"),
        (("quantize", SMALL, *DIGITS, "--mode", "dynamic", "--stats", "s.yaml"), "no statistics"),
        (("evaluate", SMALL, *DIGITS, "--channels", "2"), "channels are 1 or 3, got 2"),
        (("evaluate", SMALL, *DIGITS, "--limit", "0"), "limit is a positive number, got 0"),
        (("evaluate", SMALL, *DIGITS, "--weights", "none.pth"), "none.pth holds no weights"),
    ],
)
def test_one_clear_error_and_no_file(monkeypatch, capsys, tmp_path, arguments, message):
    outputs = ("--out", "q.safetensors", "--save-stats", "s2.yaml", "--save-config", "c.yaml")
    monkeypatch.syspath_prepend(sys.path[0])
    monkeypatch.chdir(tmp_path)
    more = outputs if arguments[0] == "quantize" and "--mode" not in arguments else ()
    code, text = call(monkeypatch, capsys, *arguments, *more)
    assert code == 1, text
    told = text[text.index("fxquant: ") :]
    assert message in " ".join(told.split())
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["quantize", "evaluate", "inspect", "compare", "export", "demo"]
)
def test_every_command_has_help_with_examples(monkeypatch, capsys, command):
    code, text = call(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "Examples:" in text
    assert f"fxquant {command}" in text


# ------------------------------------------------------------------------ the parts


def test_clips():
    kinds = MinMax(), AverageMinMax(), MeanStd(2.0), Percentile(99.0), KL(), MSE(), ACIQ()
    for clip, calibrator in zip(CLIPS, (*kinds, ACIQ("gauss")), strict=True):
        assert clipped(clip) == calibrator


def clipped(clip):
    more = {"std": {"stds": 2.0}, "percentile": {"percent": 99.0}}.get(clip, {})
    return Options(clip=clip, **more).to_config().calibrator


@pytest.mark.parametrize(
    ("activations", "text"), [("unsigned", "uint6"), ("signed", "int6"), ("symmetric", "int6")]
)
def test_schemes(activations, text):
    config = Options(activations=activations, activation_bits=6, per_channel=False).to_config()
    assert str(config.activation) == text
    assert config.activation.symmetric == (activations == "symmetric")
    assert not config.weight.per_channel


def test_single_options_come_after_files_and_presets(tmp_path):
    fxquant.save_config(QuantConfig(first_last_bits=8, accumulator_bits=24), tmp_path / "c.yaml")
    file = tmp_path / "c.yaml"
    config = Options(config=file, accumulator_bits=28, multiplier_bits=16).to_config()
    assert (config.first_last_bits, config.accumulator_bits, config.multiplier_bits) == (8, 28, 16)
    assert Options(preset="w4a8", weight_bits=5).to_config().weight.bits == 5
    assert Options().to_config() == QuantConfig(calibrator=MinMax(), batch_norm="fold")


def test_scores_by_hand():
    """Of three images one has its class first, two among the first five of six."""
    logits = torch.tensor([[9.0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]])
    scores = Scores().and_of(logits, torch.tensor([0, 4, 5]))
    assert (scores.images, scores.first, scores.among_five) == (3, 1, 2)
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 4, 5]))
    assert scores.loss == pytest.approx(float(expected))
    told = []
    model = nn.Identity().train()
    batches = [Batch(logits, torch.tensor([0, 4, 5]))] * 2
    assert evaluate(model, batches, told.append).images == 6
    assert [scores.images for scores in told] == [3, 6]
    assert model.training


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no image"),
        ([Batch(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))], "2 labels do not fit"),
        ([Batch(torch.zeros(2, 3), torch.tensor([0, 3]))], "class 3 is beyond the 3"),
    ],
)
def test_labels_that_do_not_fit(batches, message):
    with pytest.raises(DataError, match=message):
        evaluate(nn.Identity(), batches)


def test_folders_of_images(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is in the extra `vision`")
    image = pytest.importorskip("PIL.Image", reason="pillow comes with torchvision")
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        image.new("RGB", (40, 30), (number * 200, 0, 0)).save(tmp_path / name / "0.png")
    images = Images(str(tmp_path), 28)
    batch = next(iter(images))
    assert batch.images.shape == (2, 3, 28, 28)
    assert sorted(batch.labels.tolist()) == [0, 1]
    assert (len(images), images.count) == (1, 2)
    (tmp_path / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image .*0\.png cannot be read"):
        next(iter(images))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        len(Images(str(tmp_path / "empty"), 28))


def test_weights_that_do_not_fit(tmp_path):
    model = network()
    for name, content, message in (
        ("other.pth", {"weight": torch.zeros(1)}, "does not fit the model"),
        ("list.pth", [1, 2], "holds a list, not a state_dict"),
        ("more.pth", {"epoch": 3}, "holds more than tensors: 'epoch'"),
        ("code.pth", {"code": print}, "holds no weights that can be read"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ConfigError, match=message):
            load_weights(model, tmp_path / name)


def test_architectures_of_torchvision():
    pytest.importorskip("torchvision", reason="torchvision is in the extra `vision`")
    assert model_named("squeezenet1_1", 7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ConfigError, match="no architecture 'resnet81'; did you mean"):
        model_named("resnet81")
