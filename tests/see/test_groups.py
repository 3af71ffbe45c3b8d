"""Nodes are grouped by the modules that they come from."""

from fxquant.see.groups import groups_of


def test_entries_of_lists_are_one_step():
    paths = {
        "a": "cells.0._ops.1.op.1", "b": "cells.0._ops.1.op.2", "c": "cells.0", "d": "cells.1.op",
        "e": "cells.1.ops", "x": "",
    }
    groups = groups_of(paths)
    assert groups.of == {
        "a": "cells.0._ops.1", "b": "cells.0._ops.1", "c": "cells.0", "d": "cells.1",
        "e": "cells.1", "x": "",
    }
    assert groups.parents == {"cells.0": "", "cells.0._ops.1": "cells.0", "cells.1": ""}


def test_a_group_of_one_or_of_all_that_its_parent_holds_is_none():
    assert groups_of({"a": "head.layer", "b": "stem"}).parents == {}
    assert groups_of({"a": "model.net.x", "b": "model.net.y"}).parents == {}
    inner = groups_of({"a": "f.g.x", "b": "f.g.y", "c": "h"})
    assert inner.parents == {"f": ""}  # 'f.g' holds all that 'f' does


def test_a_list_of_operators_is_a_group():
    groups = groups_of({"a": "net.0", "b": "net.1", "c": "net.2", "x": ""})
    assert groups.of == {"a": "net", "b": "net", "c": "net", "x": ""}
    mixed = groups_of({"a": "net.0", "b": "net.1.conv", "c": "net.1.relu", "d": "net.2"})
    assert mixed.of == {"a": "", "b": "net.1", "c": "net.1", "d": ""}  # 'net' would hold both ends


def test_a_list_whose_operators_stand_apart_is_none():
    """As the pools of a DARTS cell do, between which sums stand: arrows would run in circles."""
    groups = groups_of({"a": "ops.0", "b": "ops.1", "c": "", "d": "ops.2"})
    assert groups.parents == {}


def test_every_parent_is_a_group():
    groups = groups_of({f"n{i}": f"a.{i % 2}.b.{i % 4}.c.{i}" for i in range(16)})
    assert set(groups.of.values()) | set(groups.parents.values()) <= {"", *groups.parents}
