"""Who may import whom: each layer sees only those before it."""

import ast
from pathlib import Path

import pytest

from fxquant.ops import OPS
from fxquant.passes import PASSES

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("errors", "extras", "fields", "files"),
    ("schemes",),
    ("rounding",),
    ("intmath",),
    ("kernels",),
    ("forms",),
    ("observers",),
    ("fake_quant",),
    ("graph",),
    ("ops",),
    ("sites",),
    ("pipeline",),
    ("overrides",),
    ("passes",),
    ("config",),
    ("recipes",),
    ("batches",),
    ("api", "after_training", "calibration", "audit", "explain", "see", "saved", "phases", "decay",
     "incremental"),
    ("reconstruction", "layer_costs"),
    ("mixed_precision",),
    ("export",),
    ("records", "presets"),
    ("config_file", "statistics_file"),
    ("at_first_use",),
    ("integrations",),
    ("darts",),
    ("demo",),
    ("command",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((*(ROOT / "fxquant").rglob("*.py"), *(ROOT / "passes").rglob("*.py")))


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("").parts
    return "passes" if relative[0] == "passes" else relative[1]


def imported(path: Path) -> set[str]:
    """The full names of the fxquant modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fxquant"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("fxquant")}
    return found


def torch_imports(path: Path) -> set[str]:
    """The modules of torch that a file imports, and the names from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch"):
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found - {"torch.fx"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path):
    part = part_of(path)
    if part == "__init__":  # the public names may come from anywhere
        return
    for module in imported(path):
        other = module.split(".")[1] if "." in module else None
        assert other is None or LEVEL[other] <= LEVEL[part], f"{path} imports {module}"


def test_no_pass_imports_a_pass():
    for path in (ROOT / "passes").glob("*.py"):
        if path.name != "__init__.py":
            assert not any(m.startswith("fxquant.passes") for m in imported(path)), path


def test_no_operator_imports_an_operator():
    """An operator's file is one that gives a record to the list; the others are for several."""
    records = {m for m in imported(ROOT / "fxquant/ops/__init__.py") if m != "fxquant.ops.spec"}
    for path in (ROOT / "fxquant/ops").glob("*.py"):
        if path.name != "__init__.py":
            assert records.isdisjoint(imported(path)), path


def test_operators_know_nothing_of_graphs():
    for path in (ROOT / "fxquant/ops").glob("*.py"):
        assert not any(m.startswith("fxquant.graph") for m in imported(path)), path


def test_every_pass_is_listed():
    files = {p.stem for p in (ROOT / "passes").glob("*.py")} - {"__init__"}
    assert {p.name for p in PASSES} == files


def test_every_operator_file_is_listed():
    text = (ROOT / "fxquant/ops/__init__.py").read_text()
    for path in (ROOT / "fxquant/ops").glob("*.py"):
        if "= OpSpec(" in path.read_text() or "return OpSpec(" in path.read_text():
            assert f"fxquant.ops.{path.stem} import" in text, path
    names = [op.name for op in OPS]
    assert len(names) == len(set(names))


def test_every_folder_has_a_row():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    folders = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES} - {"fxquant"}
    assert not [folder for folder in sorted(folders) if f"`{folder}/`" not in text]


def test_torch_fx_private_names_stay_in_graph():
    for path in SOURCES:
        if part_of(path) != "graph":
            assert "fx.node" not in path.read_text(), path
            private = {m for m in torch_imports(path) if "._" in m or m.startswith("torch.fx.")}
            assert not private, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path: Path):
    """Up to 60 lines; a longer one says `# long:` and why beside its name."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
            assert "# long: " in lines[node.lineno - 1], f"{path}: {node.name}"
