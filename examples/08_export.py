"""Take the integers elsewhere: ONNX in onnxruntime, a torch.export program, C99.

    pip install 'fxquant[onnx,save]'
    python examples/08_export.py [folder]

    quantized ─┬─ digits.onnx ── onnxruntime ──┐
               ├─ digits.pt2 ─── torch alone ──┼── the same integers
               └─ bundle/c ───── cc, a pipe ───┘

Where there is no C compiler, the C is written and not run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from handwriting import accuracy, digits, network, train
from torch import Tensor, fx

import fxquant


def quantized_network() -> tuple[fx.GraphModule, Tensor]:
    """Trained in float, then a little with fake-quants; and the images that it did not see."""
    torch.manual_seed(0)
    known, held_out = digits()
    model = network()
    train(model, *known, epochs=6)
    prepared = fxquant.prepare_qat(model)
    train(prepared, *known, epochs=2)
    quantized = fxquant.convert(prepared)
    print(f"held-out digits read right: {accuracy(quantized, *held_out):.4f}")
    return quantized, held_out[0]


def in_onnxruntime(quantized: fx.GraphModule, path: Path, images: Tensor) -> bool:
    """Every integer of every node, for all images."""
    fxquant.export_onnx(quantized, path, images[:8])
    found = fxquant.verify(quantized, path, images, engines=["onnxruntime"])
    print(found)
    return found.equal


def as_program(quantized: fx.GraphModule, path: Path, images: Tensor) -> bool:
    """What a process without fxquant would load."""
    torch.export.save(fxquant.export_program(quantized, images[:8]), path)
    logits = torch.export.load(path).module()(images)
    return torch.equal(logits, quantized(images))


def in_c(quantized: fx.GraphModule, folder: Path, images: Tensor) -> bool | None:
    """Compiled and fed the codes of all images; None without a compiler."""
    fxquant.export_bundle(quantized, folder, images, c=True)
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    code = folder / "c"
    command = [compiler, "-std=c99", "-O2", *map(str, code.glob("*.c")), "-o", str(code / "digits")]
    subprocess.run(command, check=True)
    codes = (code / "golden_x0.bin").read_bytes()
    logits = subprocess.run([code / "digits"], input=codes, capture_output=True, check=True).stdout
    return logits == (code / "golden_y0.bin").read_bytes()


def main(folder: str = "exported") -> None:
    """All three, beside the network that they came from."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    quantized, images = quantized_network()
    equal = (
        in_onnxruntime(quantized, out / "digits.onnx", images),
        as_program(quantized, out / "digits.pt2", images),
        in_c(quantized, out / "bundle", images),
    )
    for name, same in zip(("onnxruntime", "torch.export", "C99"), equal, strict=True):
        print(f"{name:14}{'not run: no C compiler' if same is None else same}")
    print("equal    ", all(same is not False for same in equal))
    print(f"Everything is in {folder}/.")


if __name__ == "__main__":
    main(*sys.argv[1:])
