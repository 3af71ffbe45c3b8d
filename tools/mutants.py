"""Change the code in small ways, one at a time, and see whether a test notices.

    python tools/mutants.py                          every mutant: hours
    python tools/mutants.py --sample 40              40 of each file, the same ones every time
    python tools/mutants.py --sample 40 ops/conv     of the files whose path holds the word
    python tools/mutants.py --line 61 schemes        those of one line

mutmut finds the places and makes the changes (`+` to `-`, `<` to `<=`, 2 to 3, an argument dropped
or None, a branch never taken); two kinds are added here: a method that is not called
(`x.abs()` to `x`) and a statement that is not run. Annotations, texts, assertions, what goes into
logs and how errors are worded are left as they are. Each mutant is written into a copy of the
tree, as planted_bugs.py makes it; a process forked from one that has torch imported runs the quick
tests of that file (`TESTS`), until the first failure, with few and always the same examples
(the Hypothesis profile `mutants` of tests/conftest.py).

A survivor is printed as a diff. It asks for a test, or for simpler code; where it means the same
as the code, for an entry in equivalent_mutants.toml beside this file, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import compileall
import difflib
import math
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any, NamedTuple

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import (
    mutation_operators,
    operator_arg_removal,
    operator_assignment,
    operator_string,
)
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.planted_bugs import copied_tree  # noqa: E402 — found through the line above

EQUIVALENT = ROOT / "tools" / "equivalent_mutants.toml"
OPTIONS = (
    *("-x", "-q", "--assert=plain", "--hypothesis-profile=mutants"),
    *("-p", "no:cacheprovider", "-p", "no:xdist"),
)
PASSED, NOT_COLLECTED = 0, 2  # exit codes of pytest


# ------------------------------------------------------------------------ which tests


def laws(*names: str) -> list[str]:
    """The laws of those operators."""
    tests = (
        "test_eval_is_what_convert_gives",
        "test_integers_follow_the_real_operator",
        "test_until_it_has_seen_data_it_is_the_float_operator",
    )
    return [f"tests/ops/test_laws.py::{test}[{name}]" for test in tests for name in names]


def networks(names: str, configs: str = "default") -> list[str]:
    """Networks of test_reference.py against integers, against reals and against eval()."""
    tests = (
        "test_every_activation_is_the_reference",
        "test_every_operator_is_within_half_a_step_of_the_real_one",
        "test_converted_is_eval",
    )
    found = product(tests, names.split(), configs.split(","))
    return [f"tests/test_reference.py::{test}[{name}-{config}]" for test, name, config in found]


def float_networks(names: str, configs: str) -> list[str]:
    """Prepared networks of test_reference.py that have seen no data, against the float ones."""
    test = "tests/test_reference.py::test_until_it_has_seen_data_eval_is_the_float_network"
    return [f"{test}[{n}-{c}]" for n, c in product(names.split(), configs.split(","))]


def pass_laws(name: str) -> list[str]:
    """The laws of one pass, as far as they say something of it."""
    tests = ["test_leaves_a_sound_graph"]
    if name not in ("insert_fake_quant", "lower_to_integer"):
        tests.append("test_keeps_the_function")
    if name not in ("insert_observers", "insert_fake_quant", "lower_to_integer"):
        tests.append("test_twice_is_once")
    return [f"tests/passes/test_laws.py::{test}[{name}]" for test in tests]


NUMBERS = ["tests/test_schemes.py", "tests/test_intmath.py"]
SPELLINGS = ["tests/passes/test_canonicalize.py"]
RECORDS = [
    "tests/ops/test_laws.py::test_records_agree_with_themselves",
    "tests/ops/test_laws.py::test_exact_operators_stay_on_the_grid",
]
ALONE = "tests/ops/test_laws.py::test_a_number_alone_keeps_its_integer_type"
TABLES = [
    "tests/ops/test_tables.py",
    "tests/ops/test_laws.py::test_curved_operators_let_no_factor_through",
    *SPELLINGS, *networks("functions"),
]
NORMS = ["tests/ops/test_norms.py", *networks("norms")]
WINDOWS = "tests/ops/test_windows.py"
WHOLE = ["tests/test_api.py", "tests/test_odd_networks.py"]
MANY = networks("convs transposed separable readers joined constants moves means linears")
ADAPTIVE = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
POOLS = "pools_1d pools_2d pools_3d means"

# by file, quickest first; the first failure decides
TESTS: dict[str, list[str]] = {
    "fxquant/schemes.py": [*NUMBERS, *networks("convs transposed", "default,symmetric,4 bits")],
    "fxquant/rounding.py": [
        "tests/test_rounding.py", *NUMBERS, "tests/ops/test_rounding.py",
        *networks("convs readers joined means pools_2d", "default,symmetric,4 bits"),
    ],
    "fxquant/intmath.py": [
        *NUMBERS,
        "tests/passes/test_lower_to_integer.py::"
        "test_a_sum_that_may_overflow_is_refused_with_its_channel",
        *networks("convs readers joined means pools_2d", "default,symmetric,4 bits"),
        "tests/test_reference.py::test_autocast_does_not_reach_the_integers[convs]",
    ],
    "fxquant/ops/__init__.py": ["tests/test_intmath.py", *SPELLINGS, *networks("readers")],
    "fxquant/ops/adaptive_avg_pool.py": [WINDOWS, *SPELLINGS, *networks(POOLS), *laws(*ADAPTIVE)],
    "fxquant/ops/add.py": [
        *SPELLINGS, ALONE, *networks("readers", "default,symmetric"), *laws("add"),
    ],
    "fxquant/ops/avg_pool.py": [
        WINDOWS, *SPELLINGS, *networks(POOLS), *laws("avg_pool1d", "avg_pool2d", "avg_pool3d"),
    ],
    "fxquant/ops/batch_norm.py": [
        "tests/ops/test_batch_norm.py", *SPELLINGS,
        *networks("joined linears", "default,symmetric"), *laws("batch_norm"),
    ],
    "fxquant/ops/cat.py": [*SPELLINGS, *networks("joined", "default,symmetric"), *laws("cat")],
    "fxquant/ops/clamp.py": [
        *SPELLINGS, ALONE,
        *networks("readers separable", "default,symmetric,signed"),
        *laws("clamp", "hardtanh", "relu6"),
    ],
    "fxquant/ops/conv.py": [
        *SPELLINGS, *networks("convs convs_1d convs_3d"), *laws("conv1d", "conv2d", "conv3d"),
    ],
    "fxquant/ops/conv_transpose.py": [
        *SPELLINGS, *networks("transposed transposed_1d transposed_3d"), *laws(*TRANSPOSED),
    ],
    "fxquant/sites/flow.py": [
        "tests/passes/test_insert_fake_quant.py", "tests/passes/test_insert_observers.py", *WHOLE,
        *MANY,
    ],
    "fxquant/sites/integer.py": [
        *networks("convs readers moves"),
        "tests/test_reference.py::test_convert_leaves_the_prepared_network_as_it_is", *WHOLE,
    ],
    "fxquant/ops/fold.py": [
        "tests/passes/test_fold_bn.py", "tests/passes/test_absorb_high_bias.py",
        "tests/passes/test_correct_bias.py",
    ],
    "fxquant/ops/layer.py": [
        "tests/test_intmath.py", *networks("convs transposed_3d linears"),
        "tests/test_reference.py::test_autocast_does_not_reach_the_integers[convs]",
    ],
    "fxquant/ops/linear.py": [*SPELLINGS, *networks("linears"), *laws("linear")],
    "fxquant/ops/max_pool.py": [
        *SPELLINGS, *networks(POOLS), *RECORDS, *laws("max_pool1d", "max_pool2d", "max_pool3d"),
    ],
    "fxquant/ops/mean.py": [*SPELLINGS, *networks("means"), *laws("mean")],
    "fxquant/sites/move.py": [
        "tests/passes/test_equalize_cross_layer.py", *networks("moves joined"), *WHOLE,
    ],
    "fxquant/sites/foldable.py": [
        "tests/passes/test_fold_bn.py", "tests/passes/test_fuse_conv_bn_relu.py",
        *networks("linears"), *float_networks("convs Joined", "default,fold"),
    ],
    "fxquant/ops/pad.py": [
        *SPELLINGS, *networks("constants", "default,symmetric"), *laws("pad", "pad_value"),
    ],
    "fxquant/sites/reading.py": ["tests/passes/test_fix_shapes.py", *SPELLINGS],
    "fxquant/ops/relu.py": [*SPELLINGS, ALONE, *networks("readers"), *RECORDS, *laws("relu")],
    "fxquant/sites/call_site.py": [
        *networks("convs readers joined transposed separable", "default,symmetric,equalize"),
        *float_networks("convs Joined separable", "default,fold,equalize"), *WHOLE,
    ],
    "fxquant/ops/spec.py": [
        "tests/ops/test_clamp.py", *SPELLINGS,
        *networks("convs readers joined separable", "default,equalize"), *WHOLE,
    ],
    "fxquant/sites/verify.py": [
        "tests/sites/test_verify.py", *networks("moves constants"), *WHOLE,
    ],
    "fxquant/ops/zero.py": [*SPELLINGS, ALONE, *networks("constants"), *RECORDS, *laws("zero")],
    "fxquant/ops/affine.py": ["tests/ops/test_arithmetic.py", *SPELLINGS, *networks("arithmetic")],
    "fxquant/ops/div.py": [
        "tests/ops/test_arithmetic.py", *SPELLINGS, *networks("arithmetic"), *laws("div"),
    ],
    "fxquant/ops/elu.py": [*TABLES, *laws("elu")],
    "fxquant/ops/exp.py": [*TABLES, *laws("exp")],
    "fxquant/sites/phase.py": ["tests/test_phases.py"],
    "fxquant/sites/quantized_layer.py": ["tests/test_modes.py"],
    "fxquant/forms/onnx.py": ["tests/export/test_onnx.py"],
    "fxquant/forms/qdq.py": ["tests/export/test_onnx.py"],
    "fxquant/forms/movable.py": ["tests/export/test_onnx.py", "tests/export/test_tflite.py"],
    "fxquant/forms/tflite.py": ["tests/export/test_tflite.py"],
    "fxquant/forms/tflite_ways.py": ["tests/export/test_tflite.py"],
    "fxquant/forms/weight_scales.py": ["tests/export/test_onnx.py", "tests/export/test_tflite.py"],
    "fxquant/ops/gelu.py": [*TABLES, *laws("gelu")],
    "fxquant/ops/hardsigmoid.py": [*TABLES, *laws("hardsigmoid")],
    "fxquant/ops/hardswish.py": [*TABLES, *laws("hardswish")],
    "fxquant/ops/leaky_relu.py": [*TABLES, *laws("leaky_relu")],
    "fxquant/ops/matmul.py": [
        "tests/ops/test_matmul.py", *SPELLINGS, *networks("attention"), *laws("matmul"),
    ],
    "fxquant/ops/mul.py": [
        "tests/ops/test_arithmetic.py", *SPELLINGS, *networks("arithmetic"), *laws("mul"),
    ],
    "fxquant/ops/new_zeros.py": [*SPELLINGS, *networks("mixed"), *laws("new_zeros")],
    "fxquant/ops/operands.py": [
        "tests/test_intmath.py", "tests/ops/test_arithmetic.py", *networks("readers mixed gated"),
    ],
    "fxquant/sites/parameters.py": [
        "tests/passes/test_fold_bn.py", "tests/passes/test_absorb_high_bias.py", *WHOLE,
    ],
    "fxquant/ops/scale.py": [
        *RECORDS, "tests/passes/test_scale_by_parameters.py", *networks("arithmetic"),
        *laws("scale"),
    ],
    "fxquant/ops/sigmoid.py": [*TABLES, *laws("sigmoid")],
    "fxquant/ops/silu.py": [*TABLES, *laws("silu")],
    "fxquant/ops/softmax.py": [
        "tests/ops/test_softmax.py", *SPELLINGS, *networks("attention"), *laws("softmax"),
    ],
    "fxquant/ops/sub.py": [
        *RECORDS, "tests/ops/test_arithmetic.py", *SPELLINGS, *networks("arithmetic"), *laws("sub"),
    ],
    "fxquant/ops/sum_of_products.py": [
        "tests/passes/test_join_products.py", *networks("gated"), *laws("sum_of_products"),
    ],
    "fxquant/ops/table.py": [*TABLES, *laws("silu", "leaky_relu")],
    "fxquant/ops/tanh.py": [*TABLES, *laws("tanh")],
    "fxquant/ops/weighted_sum.py": [
        *RECORDS, "tests/passes/test_weigh_terms.py", *networks("mixed"), *laws("weighted_sum"),
    ],
    "fxquant/sites/width.py": [
        "tests/sites/test_width.py", "tests/passes/test_bound_masks.py", *networks("attention"),
    ],
    "fxquant/ops/factor_and_offset.py": [
        "tests/ops/test_arithmetic.py", "tests/ops/test_batch_norm.py", *networks("arithmetic"),
    ],
    "fxquant/ops/windows.py": ["tests/export/test_onnx.py", *networks(POOLS)],
    "fxquant/ops/moments.py": [*NORMS, *laws("layer_norm", "rms_norm", "normalize")],
    "fxquant/ops/layer_norm.py": [*NORMS, *laws("layer_norm")],
    "fxquant/ops/group_norm.py": [*NORMS, *laws("group_norm")],
    "fxquant/ops/instance_norm.py": [*NORMS, *laws("instance_norm")],
    "fxquant/ops/rms_norm.py": [*NORMS, *laws("rms_norm")],
    "fxquant/ops/normalize.py": [*NORMS, *laws("normalize")],
    "fxquant/ops/accumulator.py": ["tests/test_audit.py", *laws("add", "linear", "matmul")],
    "fxquant/ops/average.py": [
        "tests/ops/test_averages.py", "tests/ops/test_quotient.py", "tests/ops/test_rounding.py",
        *networks(POOLS),
    ],
    "fxquant/ops/sum.py": ["tests/ops/test_averages.py", *SPELLINGS, *laws("sum")],
    "fxquant/ops/adaptive_max_pool.py": [
        *SPELLINGS, *networks("slopes"), *RECORDS,
        *laws("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    ],
    "fxquant/ops/embedding.py": [
        "tests/ops/test_embedding.py", *SPELLINGS, *networks("rows"), *laws("embedding"),
    ],
    "fxquant/ops/interpolate.py": [
        "tests/ops/test_interpolate.py", *SPELLINGS, *networks("resized_1d resized_2d resized_3d"),
        *laws("interpolate_nearest", "interpolate_linear"),
    ],
    "fxquant/ops/pad_copies.py": [
        "tests/ops/test_copies.py", *SPELLINGS, *networks("copies"), *laws("pad_copies"),
    ],
    "fxquant/ops/prelu.py": [
        "tests/ops/test_prelu.py", *SPELLINGS, *networks("slopes"), *laws("prelu"),
    ],
    "fxquant/ops/selection.py": [
        "tests/ops/test_copies.py", *networks("copies resized_2d"), *RECORDS,
    ],
    "passes/quantize_layers.py": ["tests/test_modes.py"],
    "passes/lower_layers.py": ["tests/test_modes.py"],
    "passes/canonicalize.py": [*SPELLINGS, *WHOLE, *pass_laws("canonicalize")],
    "passes/equalize_cross_layer.py": [
        "tests/passes/test_equalize_cross_layer.py",
        *float_networks("separable transposed Residual Joined", "equalize"),
        *pass_laws("equalize_cross_layer"),
    ],
    "passes/fold_bn.py": [
        "tests/passes/test_fold_bn.py", *float_networks("convs transposed Joined", "fold"),
        "tests/test_odd_networks.py", *pass_laws("fold_bn"),
    ],
    "passes/fuse_conv_bn_relu.py": [
        "tests/passes/test_fuse_conv_bn_relu.py", *networks("convs readers joined"),
        *pass_laws("fuse_conv_bn_relu"),
    ],
    "passes/insert_fake_quant.py": [
        "tests/passes/test_insert_fake_quant.py", *networks("transposed moves"), *WHOLE,
        *pass_laws("insert_fake_quant"),
    ],
    "passes/insert_observers.py": [
        "tests/passes/test_insert_observers.py", *networks("moves constants"), *WHOLE,
        *pass_laws("insert_observers"),
    ],
    "passes/join_adds.py": [
        "tests/passes/test_join_adds.py", *networks("readers"), *pass_laws("join_adds"),
    ],
    "passes/lower_to_integer.py": [
        "tests/passes/test_lower_to_integer.py", *networks("moves constants readers"), *WHOLE,
        *pass_laws("lower_to_integer"),
    ],
    "passes/absorb_high_bias.py": ["tests/passes/test_absorb_high_bias.py"],
    "passes/bound_masks.py": [
        "tests/passes/test_bound_masks.py", *networks("attention"), *pass_laws("bound_masks"),
    ],
    "passes/fix_shapes.py": ["tests/passes/test_fix_shapes.py", *pass_laws("fix_shapes")],
    "passes/scale_by_parameters.py": [
        "tests/passes/test_scale_by_parameters.py", *pass_laws("scale_by_parameters"),
    ],
    "passes/correct_bias.py": ["tests/passes/test_correct_bias.py"],
    "passes/join_products.py": ["tests/passes/test_join_products.py", *networks("gated")],
    "passes/weigh_terms.py": ["tests/passes/test_weigh_terms.py", *networks("mixed")],
}


# ------------------------------------------------------------------------ which mutants

TEXT_METHODS = ("__repr__", "__str__", "extra_repr")
LOG_METHODS = ("change", "leave")
MODULE_NAMES = ("torch", "F", "nn", "st", "math", "operator", "inspect", "intmath", "copy")


def method_not_called(node: cst.Call) -> Iterator[cst.BaseExpression]:
    """`x.abs()` to `x`; a function of a module is no method."""
    called = node.func
    if isinstance(called, cst.Attribute):
        owner = called.value
        if not (isinstance(owner, cst.Name) and owner.value in MODULE_NAMES):
            yield owner


def statement_not_run(node: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """`f(x)` on a line of its own to `pass`."""
    if isinstance(node.body[0], cst.Expr) and isinstance(node.body[0].value, cst.Call):
        yield node.with_changes(body=[cst.Pass()])


def argument_dropped(node: cst.Call) -> Iterator[cst.Call]:
    """`f(x, y)` to `f(x)` or `f(None, y)`; not of a class or a builtin, which would not take it."""
    name = node.func.value if isinstance(node.func, cst.Name) else ""
    if name not in vars(builtins) and not name[:1].isupper():
        yield from operator_arg_removal(node)


# of mutmut's: texts say nothing, and what reads a name that is None always notices
LEFT_OUT = (operator_string, operator_assignment, operator_arg_removal)
OPERATORS = [
    *((kind, change) for kind, change in mutation_operators if change not in LEFT_OUT),
    (cst.Call, argument_dropped),
    (cst.Call, method_not_called),
    (cst.SimpleStatementLine, statement_not_run),
]


class Visitor(MutationVisitor):
    """mutmut's, but decorated functions are mutated too, and what is only text is not."""

    def __init__(self) -> None:
        super().__init__(OPERATORS, IgnoredCode(set(), set(), set()))

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            return node.name.value in TEXT_METHODS
        if isinstance(node, cst.SimpleStatementLine):
            return isinstance(node.body[0], (cst.Raise, cst.Assert, cst.Import, cst.ImportFrom))
        if isinstance(node, (cst.Assign, cst.AnnAssign)) and is_text(node.value):
            return True
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
            return node.func.attr.value in LOG_METHODS
        return isinstance(node, (cst.Annotation, cst.Decorator, cst.FormattedString))

    def _should_mutate_node(self, node: cst.CSTNode) -> bool:
        # nor is a statement dropped that only writes a log
        if isinstance(node, cst.SimpleStatementLine) and isinstance(node.body[0], cst.Expr):
            return not self._skip_node_and_children(node.body[0].value)
        return True


def is_text(value: cst.BaseExpression | None) -> bool:
    """Whether a value is a string, or several."""
    if isinstance(value, cst.Tuple):
        return all(is_text(element.value) for element in value.elements)
    return isinstance(value, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString))


class Mutant(NamedTuple):
    """One small change of a file: `before` and `after` are the lines that differ."""

    file: str
    line: int
    source: str
    before: str
    after: str


def mutants_of(file: str, text: str, seed: int) -> Iterator[Mutant]:
    """Every mutant of a file that still compiles, each once, shuffled."""
    wrapper = MetadataWrapper(cst.parse_module(text))
    visitor = Visitor()
    module = wrapper.visit(visitor)
    lines = wrapper.resolve(PositionProvider)
    found = {essence(text)}
    random.Random(f"{seed} {file}").shuffle(visitor.mutations)
    for mutation in visitor.mutations:
        source = module.deep_replace(mutation.original_node, mutation.mutated_node).code
        try:
            meaning = essence(source)
        except SyntaxError:
            continue
        if meaning not in found:
            found.add(meaning)
            line = lines[mutation.original_node].start.line
            yield Mutant(file, line, source, *changed_lines(text, source))


def essence(source: str) -> str:
    """What tells one mutant from another; a SyntaxError where it is no Python.

    Without `strict=`, which checks what is always so, and `device=`, which a CPU cannot tell.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg not in ("strict", "device")]
    compile(source, "a mutant", "exec")
    return ast.dump(tree)


def changed_lines(text: str, source: str) -> tuple[str, str]:
    """The lines that differ, without their indentation."""
    diff = list(difflib.unified_diff(text.splitlines(), source.splitlines(), n=0, lineterm=""))[2:]
    sides = ([line[1:].strip() for line in diff if line[0] == mark] for mark in "-+")
    before, after = ("\n".join(lines) for lines in sides)
    return before, after


def equivalents() -> set[tuple[str, str, str]]:
    """File, lines before and lines after of the mutants that mean the same as the code."""
    entries = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    return {(e["file"], e["before"].strip(), e["after"].strip()) for e in entries}


# ------------------------------------------------------------------------ running


def run_tests(tree: Path, tests: Iterable[str], seconds: float) -> int | None:
    """pytest's exit code for those tests in a forked process; None when time is up."""
    child = os.fork()
    if child == 0:
        _become_pytest(tree, tests)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become_pytest(tree: Path, tests: Iterable[str]) -> None:
    """Never returns: this process ends with pytest's exit code."""
    code = NOT_COLLECTED
    try:
        os.setsid()
        output = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        for name in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
            del sys.modules[name]  # planted_bugs, which is this tree's
        import pytest

        code = int(pytest.main([*OPTIONS, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def preload() -> None:
    """What all tests import and no mutant changes: done once, before processes are forked."""
    import hypothesis  # noqa: F401
    import networkx  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch.fx

    torch.set_num_threads(1)  # a forked process must not wait for threads that it has not got
    sys.dont_write_bytecode = True


class Result(NamedTuple):
    """How the mutants of one file fared."""

    file: str
    tried: int
    killed: int
    timeouts: int
    equivalent: int


def examine(tree: Path, file: str, chosen: list[Mutant]) -> tuple[int, int]:
    """Try each; print who survives. How many were killed, and how many ran out of time."""
    path, tests = tree / file, TESTS[file]
    sound = path.read_text()
    began = time.monotonic()
    if run_tests(tree, tests, 600) != PASSED:
        sys.exit(f"{file}: without any mutant its tests must pass\n"
                 + (tree / "output.txt").read_text()[-3000:])
    limit = 10 + 4 * (time.monotonic() - began)
    killed = timeouts = 0
    for mutant in chosen:
        path.write_text(mutant.source)
        code = run_tests(tree, tests, limit)
        timeouts += code is None
        killed += code != PASSED
        if code == PASSED:
            print(f"\n{file}:{mutant.line} survives")
            for mark, lines in (("-", mutant.before), ("+", mutant.after)):
                print("\n".join(f"    {mark} {line}" for line in lines.split("\n")), flush=True)
    path.write_text(sound)
    return killed, timeouts


def report(results: list[Result]) -> None:
    """One line per file, and the sum, with the standard error of what a sample says."""
    sums = Result("all", *(sum(column) for column in zip(*(r[1:] for r in results), strict=True)))
    width = max(len(r.file) for r in results)
    print(f"\n{'':{width}}  equivalent  tried  killed  timeouts  survived    rate")
    for r in [*results, sums]:
        rate = r.killed / max(r.tried, 1)
        error = math.sqrt(rate * (1 - rate) / max(r.tried, 1))  # where they are a sample
        print(
            f"{r.file:{width}}  {r.equivalent:10}{r.tried:7}{r.killed:8}{r.timeouts:10}"
            f"{r.tried - r.killed:10}  {rate:6.1%} ± {error:.1%}"
        )


def main(arguments: list[str]) -> int:
    """Try mutants; exit code 1 if one survives."""
    parser = argparse.ArgumentParser(description="Mutation testing of fxquant.")
    parser.add_argument("words", nargs="*", help="of files whose path holds one of these")
    parser.add_argument("--sample", type=int, help="so many of each file, at random")
    parser.add_argument("--seed", type=int, default=0, help="another sample")
    parser.add_argument("--line", type=int, help="only of this line of the file")
    options: Any = parser.parse_args(arguments)
    present = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fxquant/forms", "fxquant/ops", "fxquant/sites", "passes")
        for path in (ROOT / folder).glob("*.py")
    }
    empty = {f"{folder}/__init__.py" for folder in ("fxquant/forms", "fxquant/sites", "passes")}
    if unlisted := present - empty - TESTS.keys():
        sys.exit(f"TESTS does not say which tests concern {', '.join(sorted(unlisted))}")
    files = [f for f in TESTS if not options.words or any(word in f for word in options.words)]
    if not files:
        parser.error(f"no file of TESTS holds {' or '.join(options.words)}")
    same = equivalents()
    results = []
    preload()
    with copied_tree() as tree:
        compileall.compile_dir(
            tree, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH
        )  # by content: a mutant may have its file's size and second
        for file in files:
            found = mutants_of(file, (tree / file).read_text(), options.seed)
            if options.line is not None:
                found = (m for m in found if m.line == options.line)
            drawn = list(islice(found, options.sample))
            chosen = [m for m in drawn if (m.file, m.before, m.after) not in same]
            killed, timeouts = examine(tree, file, chosen)
            equivalent = len(drawn) - len(chosen)
            results.append(Result(file, len(chosen), killed, timeouts, equivalent))
            print(f"{file}: {killed} of {len(chosen)} killed", flush=True)
    report(results)
    return int(any(r.killed < r.tried for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
