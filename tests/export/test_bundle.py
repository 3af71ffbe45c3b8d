"""The golden model for hardware, and its C99: what gcc makes of it gives every golden integer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant import QuantConfig
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.demo import CONFIG, FLOAT_RATE, FULL, QUICK, TUNING_RATE, Plan, load_digits, train
from fxquant.errors import ConfigError, ExportError, StageError, WriteError
from fxquant.export.c_kernels import SHIFTS
from tests import laws
from tests.ops.test_laws import Call

safetensors = pytest.importorskip(
    "safetensors.torch", reason="safetensors is in the extra `save`"
)
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
STRICT = ("gcc", "-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror")


class Everything(nn.Module):
    """What convolutional networks are made of, in three channels of 9 by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Conv2d(8, 8, (3, 1), padding="same", groups=8, dilation=2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.hardswish(self.depth(F.pad(x, (0, 1, -1, 2))[:, :, 1:-1, :-1]) + x[:, :, 1:])
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        a, b = y.chunk(2, 1)
        y = torch.cat([b, a, x[:, :, 1:]], 1)
        y = F.channel_shuffle(self.norm(F.max_pool2d(y, 3, 1, 1)), 2)
        y = y - F.avg_pool2d(torch.relu(y), 3, 1, 1, count_include_pad=False)
        return self.head((0.5 - F.avg_pool2d(y, 2, 2, ceil_mode=True)).mean((2, 3)).clamp(-2, 2))


def converted(module: nn.Module, x: torch.Tensor, config: QuantConfig | None = None):
    prepared = fxquant.prepare_qat(module, x, config)
    laws.settle(prepared, x)
    return fxquant.convert(prepared)


def compiled(folder: Path) -> Path:
    subprocess.run([*STRICT, "network.c", "main.c", "-o", "network"], cwd=folder, check=True)
    return folder / "network"


def run(network: Path, codes: torch.Tensor) -> bytes:
    given = codes.contiguous().numpy().tobytes()
    return subprocess.run([network], input=given, capture_output=True, check=True).stdout


@needs_gcc
@pytest.mark.parametrize("rounding", list(SHIFTS))
def test_c_gives_every_golden_integer(rounding, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(20, 3, 9, 8)
    quantized = converted(Everything(), x, QuantConfig(rounding=rounding))
    fxquant.export_bundle(quantized, tmp_path / "bundle", 2 * x, c=True)
    folder = tmp_path / "bundle" / "c"
    given, expected = ((folder / f"golden_{end}.bin").read_bytes() for end in ("x0", "y0"))
    found = subprocess.run([compiled(folder)], input=given, capture_output=True, check=True).stdout
    assert found == expected


class Calls(nn.Module):
    """`forward` of the module and its input, with a few layers to call."""

    def __init__(self, forward, *layers: nn.Module) -> None:
        super().__init__()
        self.call = forward
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.call(self, x)


IMAGE = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SMALL = {
    "moved before it is quantized": nn.Sequential(nn.Flatten(), nn.Linear(108, 4)),
    "zeros": Calls(
        lambda s, x: torch.cat([s.layers[0](x), torch.zeros_like(x)], 1), nn.Conv2d(3, 3, 1)
    ),
    "some columns": Calls(lambda s, x: s.layers[0](x)[..., [0, 2]], nn.Conv2d(3, 3, 1)),
}


@needs_gcc
@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_c_of_small_networks(model, tmp_path):
    fxquant.export_bundle(converted(model, IMAGE), tmp_path / "bundle", IMAGE, c=True)
    folder = tmp_path / "bundle" / "c"
    given, expected = ((folder / f"golden_{end}.bin").read_bytes() for end in ("x0", "y0"))
    found = subprocess.run([compiled(folder)], input=given, capture_output=True, check=True).stdout
    assert found == expected


NO_C_FORM = {
    "codes of one type": Calls(
        lambda s, x: s.layers[0](x).flatten(1).softmax(-1), nn.Conv2d(3, 2, 1)
    ),
    "clamped channel by channel": nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 1)),
        nn.BatchNorm2d(4),
    ),
    "conv3d has": Calls(lambda s, x: s.layers[0](x[..., None]), nn.Conv3d(3, 2, (3, 3, 1))),
    "pads with copies": nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"),
    "reads several rows": nn.Linear(6, 4),
    "averages over channels": Calls(lambda s, x: s.layers[0](x).mean(1), nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("message", NO_C_FORM)
def test_what_has_no_c_form_is_refused_and_leaves_nothing(message, tmp_path):
    config = QuantConfig(batch_norm="fold", equalize=True)
    quantized = converted(nn.Sequential(NO_C_FORM[message]), IMAGE, config)
    with pytest.raises(ExportError, match=f"{message}.*C form|C code has {message}"):
        fxquant.export_bundle(quantized, tmp_path / "bundle", IMAGE, c=True)
    assert not list(tmp_path.iterdir())
    fxquant.export_bundle(quantized, tmp_path / "bundle", IMAGE)  # without C it may be


def test_c_of_values_of_five_dimensions_is_refused(tmp_path):
    x = torch.randn(2, 3, 2, 4, 2, 3)
    quantized = converted(Calls(lambda s, x: x + s.layers[0](x), nn.ReLU()), x)
    with pytest.raises(ExportError, match="values of five dimensions have no C form"):
        fxquant.export_bundle(quantized, tmp_path / "bundle", x, c=True)
    assert not list(tmp_path.iterdir())


def test_c_gives_codes_alone(tmp_path):
    quantized = converted(Calls(lambda s, x: (s.layers[0](x), x), nn.ReLU()), IMAGE)
    with pytest.raises(ExportError, match="is given as it is: C code gives codes"):
        fxquant.export_bundle(quantized, tmp_path / "bundle", IMAGE, c=True)


def test_c_of_what_takes_indices_is_refused(tmp_path):
    x = torch.tensor([[0, 1], [2, 3]])
    quantized = converted(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 2)), x)
    with pytest.raises(ExportError, match="the network takes none"):
        fxquant.export_bundle(quantized, tmp_path / "bundle", x, c=True)


@needs_gcc
def test_c_needs_no_more_than_it_says(tmp_path):
    """Of memory beside the stack, and of numbers: as the compiler counts them. It has no heap and
    no float.
    """
    x = torch.randn(2, 3, 9, 8)
    fxquant.export_bundle(converted(Everything(), x), tmp_path / "bundle", x, c=True)
    folder = tmp_path / "bundle" / "c"
    source, header = ((folder / name).read_text() for name in ("network.c", "network.h"))
    assert not re.search(r"malloc|free\(|float|double|\d\.\d", source)
    ram, flash = (
        int(re.search(rf"NETWORK_{what} (\d+)", header)[1]) for what in ("RAM", "FLASH")
    )
    subprocess.run([*STRICT, "-c", "network.c"], cwd=folder, check=True)
    listed = subprocess.run(["size", "-A", "network.o"], cwd=folder, check=True,
                            capture_output=True, text=True).stdout
    size = {name: int(bytes_) for name, bytes_ in re.findall(r"^(\.\S+)\s+(\d+)", listed, re.M)}
    assert size[".bss"] == ram
    assert size.get(".data", 0) == 0
    constants = sum(n for name, n in size.items() if name.startswith((".rodata", ".data.rel")))
    assert 0.9 * flash <= constants <= 1.2 * flash + 512
    together = 3 * 9 * 8 + 20 * 8 * 5 * 4
    assert ram < together, "buffers share memory"


class Together(nn.Module):
    """Two pictures in, of which one is turned before it is quantized, and two out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x, y):
        a = self.a(x)
        return a + self.b(y.transpose(2, 3)), a


@needs_gcc
def test_c_of_several_inputs_and_outputs(tmp_path):
    x, y = torch.randn(6, 3, 8, 7), torch.randn(6, 2, 7, 8)
    prepared = fxquant.prepare_qat(Together(), (x, y))
    laws.settle(prepared, x, y)
    fxquant.export_bundle(fxquant.convert(prepared), tmp_path / "bundle", (x, y), c=True)
    folder = tmp_path / "bundle" / "c"

    def in_turn(letter):
        """The codes of one picture after the other."""
        files = [(folder / f"golden_{letter}{i}.bin").read_bytes() for i in range(2)]
        sizes = [len(codes) // len(x) for codes in files]
        return b"".join(codes[n * size :][:size] for n in range(len(x))
                        for codes, size in zip(files, sizes, strict=True))

    network = compiled(folder)
    found = subprocess.run([network], input=in_turn("x"), capture_output=True, check=True).stdout
    assert found == in_turn("y")


@pytest.mark.parametrize("function", [
    lambda x: x.flip(0),
    lambda x: x.roll(1, 0),
    lambda x: x[-1:],
    lambda x: torch.cat([x, x + 1]),
    lambda x: F.max_pool2d(x.flatten(0, 1)[:, None], 2),
    lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)),
])
def test_pictures_that_have_to_do_with_each_other_have_no_c(function, tmp_path):
    x = torch.randn(4, 3, 8, 8)
    quantized = converted(nn.Sequential(nn.Conv2d(3, 3, 1), Call(function)), x)
    with pytest.raises(ExportError, match=r"node '\w+'.*one picture at a time|one at a time"):
        fxquant.export_bundle(quantized, tmp_path / "bundle", x, c=True)
    assert not list(tmp_path.iterdir()), "a refusal leaves nothing"


def digits_are_classified_alike(plan: Plan, folder: Path) -> int:
    """The demo's network in C99, on all held-out digits; how many there are."""
    torch.manual_seed(plan.seed)
    training, held_out = load_digits(plan.images)
    network = NetworkCIFAR(plan.channels, 10, plan.layers, DARTS_V2, in_channels=1)
    train(network, training, plan.epochs, FLOAT_RATE, lambda done, total: None)
    prepared = fxquant.prepare_qat(network, config=CONFIG)
    train(prepared, training, plan.tuning_epochs, TUNING_RATE, lambda done, total: None)
    quantized = fxquant.convert(prepared)
    fxquant.export_bundle(quantized, folder / "bundle", held_out.images[:2], c=True)
    found = subprocess.run(
        [compiled(folder / "bundle" / "c")], capture_output=True, check=True,
        input=quantized.fxquant.quantize_x(held_out.images).numpy().tobytes(),
    ).stdout
    codes = torch.frombuffer(bytearray(found), dtype=torch.uint8).reshape(-1, 10)
    way_out = next(m for n, m in quantized.fxquant.named_children() if n.startswith("dequantize"))
    assert torch.equal(way_out(codes), quantized(held_out.images))
    return len(codes)


@needs_gcc
def test_c_of_a_small_demo_classifies_the_held_out_digits_alike(tmp_path):
    assert digits_are_classified_alike(QUICK, tmp_path) == 115


@needs_gcc
@pytest.mark.slow
def test_c_of_the_demo_classifies_the_held_out_digits_alike(tmp_path):
    assert digits_are_classified_alike(FULL, tmp_path) == 718


def bundle(folder: Path, **kwargs):
    x = torch.randn(3, 3, 9, 8)
    quantized = converted(Everything(), x)
    fxquant.export_bundle(quantized, folder, x, **kwargs)
    read = (safetensors.load_file(folder / f"{name}.safetensors") for name in ("numbers", "golden"))
    return quantized, json.loads((folder / "network.json").read_text()), *read


def test_a_bundle_says_all_that_its_golden_integers_follow_from(tmp_path):
    """Half-up convolutions and moves, computed anew from the files alone."""
    _, network, numbers, golden = bundle(tmp_path / "bundle")
    assert {node["kind"] for node in network["nodes"]} == {
        "input", "quantize", "operator", "move", "dequantize"
    }
    checked = 0
    for node in network["nodes"]:
        if node.get("operator") == "conv2d":
            n = {k: numbers[v] for k, v in node["numbers"].items()}
            d = golden[f"node.{node['reads'][0]}"].double() - n["x_zero"]
            acc = F.conv2d(d, n["weight"].double(), **node["settings"]).long()
            m, s, b = (n[k].reshape(-1, 1, 1) for k in ("multiplier", "shift", "bias"))
            y = ((acc + b) * m + (1 << s >> 1) >> s) + n["y_zero"]
            assert torch.equal(y.clamp(n["low"], n["high"]), golden[f"node.{node['name']}"].long())
            checked += 1
        elif node["kind"] == "move" and len(node["places"]) == 1:
            rows = golden[f"node.{node['reads'][0]}"].flatten(1)
            places = numbers[node["places"][0]].long()[0]
            assert torch.equal(rows[:, places.flatten()].reshape(-1, *places.shape),
                               golden[f"node.{node['name']}"])
            checked += 1
    assert checked >= 5


def test_a_bundle_follows_its_schema(tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema checks the schema")
    _, network, numbers, _ = bundle(tmp_path / "bundle")
    schema = json.loads((tmp_path / "bundle" / "network.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(network, schema)
    named = {v for node in network["nodes"] for v in node.get("numbers", {}).values()}
    named |= {v for node in network["nodes"] for v in node.get("places", [])}
    assert named == set(numbers)


def test_counts(tmp_path):
    """A convolution of 3 channels by 3×3 to 8 of 5×4: 27 products an element, of 160."""
    x = torch.randn(1, 3, 9, 8)
    counts = fxquant.export.count_operations(converted(Everything(), x), x)
    first = next(iter(counts.values()))
    assert (first.output, first.products, first.roundings) == (160, 27 * 160, 160)
    assert counts["head"].products == 80
    lines = str(counts).splitlines()
    assert lines[0].split() == ["operator", "numbers", "output", "products", "roundings"]
    assert [line.split()[0] for line in lines[1:]] == [*counts, "together"]
    products = sum(count.products for count in counts.values())
    assert lines[-1].split()[3] == f"{products:,}"


def test_refusals(tmp_path):
    folder, x = tmp_path / "bundle", torch.randn(2, 3, 9, 8)
    quantized, *_ = bundle(folder)
    fxquant.export_bundle(quantized, folder, x)  # a bundle may be replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no bundle"):
        fxquant.export_bundle(quantized, tmp_path / "mine", x)
    with pytest.raises(StageError):
        fxquant.export_bundle(nn.ReLU(), folder, x)
    rne = converted(Everything(), x, QuantConfig(rounding="fp32_rne"))
    with pytest.raises(ExportError, match="rounds in integers"):
        fxquant.export_bundle(rne, tmp_path / "c", x, c=True)
    layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GELU(), nn.Conv2d(3, 3, 1))
    kept = converted(layers, x, QuantConfig(keep_float=("1",)))
    with pytest.raises(ExportError, match=r"node '_1'.* computes in float"):
        fxquant.export_bundle(kept, tmp_path / "c", x, c=True)
    up = converted(nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), x)
    with pytest.raises(ExportError, match="conv_transpose2d has no C form"):
        fxquant.export_bundle(up, tmp_path / "c", x, c=True)
    assert not (tmp_path / "c").exists(), "a refusal leaves nothing"


def test_a_bundle_that_cannot_take_its_place_leaves_the_former_one(tmp_path, monkeypatch):
    folder, x = tmp_path / "bundle", torch.randn(2, 3, 9, 8)
    quantized, *_ = bundle(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    replace, moved = os.replace, []

    def once(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise OSError("no room")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(WriteError, match="no room"):
        fxquant.export_bundle(quantized, folder, x * 2)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
