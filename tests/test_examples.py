"""The examples run in small, as a user would run them, from any folder."""

import ast
import difflib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))

# epochs, seeds: what makes it small
ARGUMENTS = {
    "03_search": ["1"],
    "04_existing_loop_float": ["1"],
    "04_existing_loop_qat": ["2"],
    "05_low_bits": ["1", "1"],
    "06_ddp": ["1"],
    "09_lightning": ["1"],
    "10_accelerate": ["2"],
    "11_timm": ["1"],
}
NEEDS = {
    "08_export": ("onnx", "onnxruntime", "safetensors"),
    "09_lightning": ("lightning", "tensorboard"),
    "10_accelerate": ("accelerate", "torchmetrics"),
    "11_timm": ("timm",),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
LAUNCHERS = {"06_ddp": TORCHRUN, "10_accelerate": ACCELERATE}


@cache
def run(stem: str) -> str:
    """What an example prints; what it writes is thrown away."""
    for package in ("sklearn", *NEEDS.get(stem, ())):
        pytest.importorskip(package, reason=f"{package} is not installed")
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, *LAUNCHERS.get(stem, ())),
                *(FOLDER / f"{stem}.py", *ARGUMENTS.get(stem, ())),
            ],
            cwd=folder, capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(path: Path):
    said = run(path.stem)
    assert "equal     True" in said or path.stem.startswith("04_existing_loop")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_says_what_it_is_and_how_to_run_it(path: Path):
    said = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    assert said is not None
    assert re.match(r"[A-Z].*[.]\n\n    ", said), "one sentence, then commands"
    assert f"examples/{path.name}" in said


def test_processes_agree():
    assert "all ranks agree True" in run("06_ddp")


def test_an_operator_of_ones_own_computes_what_it_stands_for():
    alone = re.search(r"^mish\S+ +mish +\S+ +(\S+)", run("07_add_an_operator"), re.MULTILINE)
    assert alone is not None
    assert float(alone[1]) > 35  # dB; SiLU's table in its place: 17


# ------------------------------------------------------------------------ the loop, twice


def loop(name: str) -> list[str]:
    """The lines of one of the two scripts, without its docstring."""
    return (FOLDER / f"04_existing_loop_{name}.py").read_text().partition('\n"""\n')[2].splitlines()


def changes() -> list[str]:
    """What was changed, a line each, as diff shows it: - what went, + what came."""
    lines = difflib.unified_diff(loop("float"), loop("qat"), lineterm="", n=0)
    return [line for line in lines if re.match(r"[+-][^+-]", line)]


def test_five_lines_make_a_loop_one_that_ends_in_integers():
    came = [line for line in changes() if line.startswith("+")]
    went = [line for line in changes() if line.startswith("-")]
    assert len(came) == 5
    assert went == ["-model = network()"]


def test_the_page_shows_them():
    page = (FOLDER.parent / "docs" / "training.md").read_text()
    assert re.findall(r"```diff\n(.*?)\n```", page, re.DOTALL) == ["\n".join(changes())]


def test_the_integers_read_what_the_last_epoch_read():
    said = run("04_existing_loop_qat")
    *_, last_epoch, integers = re.findall(r"read(?: right:)? (\S+)", said)
    assert last_epoch == integers
