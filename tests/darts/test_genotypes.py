"""Genotypes: the published ones, what is refused and where, reading what a log prints."""

import copy
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fxquant.darts import (
    DARTS_V2,
    GENOTYPES,
    OPS,
    PRIMITIVES,
    AmoebaNet,
    Genotype,
    NASNet,
    parse_genotype,
)

# As darts/cnn/train_search.py logs it: a time in front, lists, a range.
LOGGED = (
    "03/30 01:12:25 PM genotype = Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0)], "
    "normal_concat=range(2, 3), reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], "
    "reduce_concat=[2])\n"
)


without_deadline = settings(deadline=None)


@st.composite
def cells(draw):
    """The edges and the concat of one cell."""
    n = draw(st.integers(1, 4))
    names = st.sampled_from(sorted(OPS))
    edges = [(draw(names), draw(st.integers(0, i + 1))) for i in range(n) for _ in range(2)]
    concat = draw(st.lists(st.integers(2, n + 1), min_size=1, unique=True))
    return edges, concat


def genotypes():
    return st.builds(lambda normal, reduce: Genotype(*normal, *reduce), cells(), cells())


def as_logged(g):
    """The notation of the published code: lists where ours prints tuples."""
    return (
        f"Genotype(normal={list(g.normal)}, normal_concat={list(g.normal_concat)}, "
        f"reduce={list(g.reduce)}, reduce_concat={list(g.reduce_concat)})"
    )


def test_every_operation_of_a_genotype_can_be_built():
    assert set(PRIMITIVES) < set(OPS)
    used = {name for g in GENOTYPES.values() for name, _ in (*g.normal, *g.reduce)}
    assert used | set(PRIMITIVES) == set(OPS)


@pytest.mark.parametrize("name", GENOTYPES)
def test_published_genotypes_have_the_papers_number_of_nodes(name):
    g = GENOTYPES[name]
    nodes = 5 if g in (NASNet, AmoebaNet) else 4
    assert len(g.normal) == len(g.reduce) == 2 * nodes


def test_the_table_of_genotypes_cannot_be_changed():
    with pytest.raises(TypeError):
        GENOTYPES["mine"] = DARTS_V2


@without_deadline
@given(genotypes())
def test_a_genotype_is_a_value(g):
    lists = Genotype(list(g.normal), list(g.normal_concat), list(g.reduce), list(g.reduce_concat))
    assert lists == g
    assert hash(lists) == hash(g)
    for same in (copy.deepcopy(g), pickle.loads(pickle.dumps(g)), Genotype(*g), g._replace()):
        assert same == g
        assert type(same) is Genotype


@without_deadline
@given(genotypes(), st.sampled_from(["", "genotype = ", "12:00:01 epoch 3\n  INFO "]))
def test_parse_reads_what_is_printed(g, before):
    for printed in (str(g), as_logged(g), as_logged(g).replace("), (", "),\n (")):
        assert parse_genotype(before + printed + "\n") == g


def test_parse_reads_a_line_of_a_log():
    assert parse_genotype(LOGGED) == Genotype(
        normal=[("sep_conv_3x3", 1), ("sep_conv_3x3", 0)],
        normal_concat=[2],
        reduce=[("max_pool_3x3", 0), ("skip_connect", 1)],
        reduce_concat=[2],
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("'sep_conv_3x3', 0", "'sep_conv_3x4', 0"), r"unknown operation 'sep_conv_3x4'.*3x3"),
        (("'sep_conv_3x3', 0", "'sep_conv_3x3', 2"), r"normal\[1\]: .*node 0 can read, 0 to 1"),
        (("'sep_conv_3x3', 0", "'sep_conv_3x3', -1"), r"normal\[1\]: .*0 to 1, got -1"),
        (("'sep_conv_3x3', 0", "'sep_conv_3x3', True"), r"normal\[1\]: .*0 to 1, got True"),
        (("'sep_conv_3x3', 0", "7, 0"), r"the name of an operation, got 7"),
        (("('sep_conv_3x3', 0)", "'sep_conv_3x3'"), r"expected \(operation, state\)"),
        ((", ('sep_conv_3x3', 0)", ""), r"normal: expected two edges for every node, got 1"),
        (("[('max_pool_3x3', 0), ('skip_connect', 1)]", "[]"), r"reduce: .* got 0"),
        (("reduce_concat=[2]", "reduce_concat=[1]"), r"state of a node, 2 to 2, got 1"),
        (("reduce_concat=[2]", "reduce_concat=[2, 3]"), r"reduce_concat\[1\].*2 to 2, got 3"),
        (("reduce_concat=[2]", "reduce_concat=[2, 2]"), r"state 2 is already listed"),
        (("reduce_concat=[2]", "reduce_concat=[]"), r"at least one state"),
        (("reduce_concat=[2]", "reduce_concat=2"), r"expected a list, got '2'"),
        (("range(2, 3)", "range(2, 10**12)"), r"a number.*got '10\*\*12'"),
        (("range(2, 3)", "range(2, 1000000000000)"), r"normal_concat\[1\].*2 to 2, got 3"),
        (("range(2, 3)", "range(2, 3, 0)"), r"expected range\("),
        (("range(2, 3)", "open('x')"), r"expected a list, got \"open\('x'\)\""),
        (("reduce_concat=[2]", "reduce_concat=[2], normal=[]"), r"expected normal once"),
        (("reduce_concat=[2]", "concat=[2]"), r"expected one of normal, .*got 'concat=\[2\]'"),
        ((", reduce_concat=[2]", ""), r"reduce_concat is missing"),
        (("normal=[", "["), r"expected normal=\.\.\."),
        (("[2])", "[2]"), r"never closed"),
        (("[2])", "[2]).normal"), r"nothing after it"),
        (("[2])", "[2])  Genotype("), r"expected one 'Genotype\(...\)', found 2"),
        (("Genotype", "Gene"), r"expected one 'Genotype\(...\)', found 0"),
    ],
)
def test_parse_says_what_is_wrong(change, says):
    wrong = LOGGED.replace(*change, 1)
    assert wrong != LOGGED
    with pytest.raises(ValueError, match=says):
        parse_genotype(wrong)


@pytest.mark.parametrize("before", ["", "genotype = ", "a line\nanother: "])
def test_parse_says_where(before):
    text = before + str(DARTS_V2).replace("dil_conv_3x3", "dill_conv")
    line = text.count("\n") + 1
    column = text.splitlines()[-1].index("('dill_conv") + 1
    with pytest.raises(ValueError, match=rf"line {line}, column {column}: normal\[7\]: unknown"):
        parse_genotype(text)


def test_a_genotype_made_by_hand_is_checked_the_same_way():
    with pytest.raises(ValueError, match=r"normal\[0\]: unknown operation 'skip', .*skip_connect"):
        Genotype([("skip", 0)] * 2, [2], [("none", 0)] * 2, [2])
    with pytest.raises(ValueError, match=r"reduce_concat\[0\]: .* 2 to 5, got 6"):
        DARTS_V2._replace(reduce_concat=[6])


@st.composite
def damaged(draw):
    """What is printed, with one piece replaced by another."""
    text = as_logged(draw(genotypes()))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    words = ["range(", "1e9", "None", "Genotype(", "lambda:"]
    pieces = st.sampled_from([*"()[]{},=*'-\\\0\n9", *words])
    return text[:start] + draw(pieces | st.text(max_size=5)) + text[end:]


@settings(max_examples=300, deadline=None)
@given(damaged() | st.text() | st.text().map("Genotype({}".format))
@example("Genotype(" + "[" * 5000)
@example("Genotype(" + "-" * 100_000 + "1)")
@example("Genotype(normal=" + "9" * 5000 + ")")
@example("Genotype('\ud800')")
def test_malformed_text_is_a_value_error_and_nothing_else(text):
    try:
        g = parse_genotype(text)
    except ValueError as error:
        says = str(error)
    else:
        says = "genotype text"
        assert parse_genotype(str(g)) == g
    assert says.startswith("genotype text")
