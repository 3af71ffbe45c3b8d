"""Small edits of a GraphModule that passes are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

SITES = "fxquant"  # the submodule that holds what fxquant adds to a model


class Site(nn.Module):
    """A module that a pass has put into a graph; none of the user's is one.

    `source` names the value that it gives: by the node of the captured graph that gave it, or,
    where none did, by the path of the site.
    """

    source: str


def insert_site(
    gm: fx.GraphModule, name: str, module: Site, args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> fx.Node:
    """Register `module` among the sites and call it where the graph inserts; node and module
    both get `name`, or the next that is free.
    """
    sites, free = _free_name(gm, name)
    module.train(gm.training)
    module.source = f"{SITES}.{free}"
    sites.add_module(free, module)
    return gm.graph.create_node("call_module", f"{SITES}.{free}", args, kwargs or {}, name=free)


def constant_site(gm: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Register a buffer among the sites and read it where the graph inserts."""
    sites, free = _free_name(gm, name)
    sites.register_buffer(free, value)
    return gm.graph.create_node("get_attr", f"{SITES}.{free}", name=free)


def _free_name(gm: fx.GraphModule, name: str) -> tuple[nn.Module, str]:
    """The module that holds the sites, and `name` or the next name that is free there."""
    sites = getattr(gm, SITES, None)
    if sites is None:
        sites = nn.Module()
        sites.train(gm.training)
        gm.add_module(SITES, sites)
    free, count = name, len(sites._modules) if hasattr(sites, name) else 0  # not one by one
    while hasattr(sites, free):
        count += 1
        free = f"{name}_{count}"
    return sites, free


def source_of(gm: fx.GraphModule, node: fx.Node) -> str:
    """Which value `node` gives, in eval() and but for rounding: that of the node of the captured
    graph with this name, which it may be itself, or a new one.
    """
    module = called_module(gm, node)
    return module.source if isinstance(module, Site) else node.name


def set_source(gm: fx.GraphModule, node: fx.Node, source: str) -> None:
    """Write down whose value the site at `node` gives from now on."""
    module = called_module(gm, node)
    assert isinstance(module, Site)
    module.source = source


def replace_site(gm: fx.GraphModule, node: fx.Node, module: Site) -> None:
    """Put another module where the site that `node` calls was: it gives the same value."""
    owner, _, name = str(node.target).rpartition(".")
    module.train(gm.training)
    module.source = source_of(gm, node)
    setattr(gm.get_submodule(owner), name, module)


def get_attribute(gm: fx.GraphModule, path: str) -> Any:
    """The module, parameter or buffer at a dotted path."""
    value: Any = gm
    for name in path.split("."):
        value = getattr(value, name)
    return value


def free_path(gm: fx.GraphModule, path: str) -> str:
    """`path`, or the next like it at which nothing lies yet."""
    owner, _, name = path.rpartition(".")
    count, free = 0, name
    while hasattr(gm.get_submodule(owner), free):
        count += 1
        free = f"{name}_{count}"
    return f"{owner}.{free}" if owner else free


def set_parameter(gm: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a new parameter at `path`: trainable as the one before it, or as usual if new."""
    owner, _, name = path.rpartition(".")
    module = gm.get_submodule(owner)
    old = module._parameters.get(name)
    trains = old.requires_grad if old is not None else True
    setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=trains))


def module_at(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a call_module or get_attr node names, if it is one."""
    if node.op not in ("call_module", "get_attr"):
        return None
    value = get_attribute(gm, str(node.target))
    return value if isinstance(value, nn.Module) else None


def called_module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, if it calls one."""
    return module_at(gm, node) if node.op == "call_module" else None


def map_nodes(arguments: Any, function: Callable[[fx.Node], Any]) -> Any:
    """Arguments of a node, nested or not, with `function` of each node in its place."""
    return fx.node.map_arg(arguments, function)


def nodes_in(arguments: Any) -> list[fx.Node]:
    """The nodes among the arguments of a node, nested or not."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def erase(node: fx.Node, use_instead: Any = None) -> None:
    """Remove `node`; its readers read `use_instead` (a node, or any other argument)."""
    if isinstance(use_instead, fx.Node):
        node.replace_all_uses_with(use_instead)
    else:
        def swap(n: fx.Node) -> Any:
            return use_instead if n is node else n

        for reader in list(node.users):
            reader.args = map_nodes(reader.args, swap)
            reader.kwargs = map_nodes(reader.kwargs, swap)
    node.graph.erase_node(node)


def check(gm: fx.GraphModule) -> None:
    """Lint the graph; it may read plain numbers of the model, about which torch.fx warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*get_attr.* Nodes typically target")
        gm.graph.lint()


def is_erased(node: fx.Node) -> bool:
    """Whether `node` was removed from its graph."""
    return node._erased


def erase_unread_attributes(gm: fx.GraphModule) -> None:
    """Remove get_attr nodes that nothing reads."""
    for node in reversed(list(gm.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)


def used_paths(gm: fx.GraphModule) -> set[str]:
    """The paths that the graph names, and every prefix of them."""
    paths: set[str] = set()
    for node in gm.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts = str(node.target).split(".")
            paths.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return paths


def delete_unused(gm: fx.GraphModule, paths: set[str]) -> None:
    """Delete those modules of `paths` that the graph no longer names."""
    for path in paths - used_paths(gm):
        gm.delete_submodule(path)


def delete_unused_sites(gm: fx.GraphModule) -> None:
    """Delete the sites that no node calls any more."""
    sites = getattr(gm, SITES, None)
    if sites is not None:
        delete_unused(gm, {f"{SITES}.{name}" for name, _ in sites.named_children()})


def put_identities(gm: fx.GraphModule, modules: set[int]) -> None:
    """Put an Identity where the modules of those ids are, under all of their names: no parameter
    of theirs is left, and every place in a container is as it was.
    """
    for path, module in list(gm.named_modules(remove_duplicate=False)):
        if id(module) in modules:
            owner, _, name = path.rpartition(".")
            setattr(gm.get_submodule(owner), name, nn.Identity().train(module.training))


def state_bytes(gm: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    tensors: dict[int, torch.Tensor] = {id(t): t for t in (*gm.parameters(), *gm.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
