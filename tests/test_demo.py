"""The demo, tiny, and the command line around it."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from fxquant.cli import main
from fxquant.demo import QUICK, run
from fxquant.errors import MissingExtraError

FILES = {"graph-float.svg", "graph-prepared.svg", "graph-integer.svg", "summary.json"}
TINY = replace(QUICK, images=192)


def call(monkeypatch, *arguments):
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fxquant", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


def test_the_command_writes_and_prints_what_happened(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    assert call(monkeypatch, "demo", "--quick", "--seed", "3", "--out", str(tmp_path)) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    summary = json.loads((tmp_path / "summary.json").read_text())
    accuracies = [summary[f"{name}_accuracy"] for name in ("float", "qat", "integer")]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert accuracies[1] == accuracies[2]
    assert summary["mismatches"] == 0
    assert summary["seconds"] > 0
    assert summary["plan"]["seed"] == 3

    printed = capsys.readouterr().out
    assert f"{100 * accuracies[2]:.2f} %" in printed
    assert f"0 of {summary['logits']}" in printed
    for step in summary["passes"]:
        assert step["name"] in printed
    assert {"fold_bn", "equalize_cross_layer", "lower_to_integer"} <= {
        step["name"] for step in summary["passes"]
    }


def test_one_seed_gives_one_outcome_and_leaves_torch_as_it_was(tmp_path):
    told = []
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first = run(tmp_path / "a", TINY, lambda *step: told.append(step))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(99)
    second = run(tmp_path / "b", TINY)
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == [
        "training in float",
        "training with fake-quants",
        "evaluating all three",
    ]
    assert all(done <= total for _, done, total in told)


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help")])
def test_help(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    assert "fxquant" in capsys.readouterr().out


def test_without_typer_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    assert call(monkeypatch, "demo") == 1
    assert "pip install 'fxquant[cli]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra"), [("sklearn.datasets", "demo"), ("rich.console", "demo")]
)
def test_missing_packages_are_one_clean_message(monkeypatch, capsys, tmp_path, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert call(monkeypatch, "demo", "--quick", "--out", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert f"pip install 'fxquant[{extra}]'" in error
    assert "Traceback" not in error


def test_without_pygraphviz_it_stops_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    told = []
    with pytest.raises(MissingExtraError, match=r"pip install 'fxquant\[draw\]'"):
        run(tmp_path, TINY, lambda *step: told.append(step))
    assert not told


def test_a_folder_that_cannot_be_made_is_one_clean_message(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert call(monkeypatch, "demo", "--quick", "--out", str(file)) == 1
    assert capsys.readouterr().err == f"fxquant: cannot make the folder '{file}': File exists\n"
