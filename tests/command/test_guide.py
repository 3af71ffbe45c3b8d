"""docs/guides/command_line.md, command by command, as a reader would type it."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from fxquant.cli import main

for package in ("typer", "rich", "sklearn", "yaml", "safetensors", "onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is in the extras `demo`, `save` and `onnx`")

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "command_line.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def without_numbers(text: str) -> list[str]:
    return re.sub(r"[\d.,]+", "#", text).splitlines()


def test_every_command_runs_and_prints_what_the_page_says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    network, _ = blocks("python")  # tests/test_snippets.py runs both
    Path("my_nets.py").write_text(network)
    names: dict[str, object] = {}
    exec(network, names)
    torch.save(names["small"]().state_dict(), "w.pth")
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in commands if line.startswith("fxquant ")]
    assert len(commands) == 5
    printed = ""
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        assert not exit_.value.code, said.err
        printed += said.out
    for block in blocks("text"):
        assert not set(without_numbers(block)) - set(without_numbers(printed))
