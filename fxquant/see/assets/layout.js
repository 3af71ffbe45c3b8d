// Which boxes there are, which of them are open, and where each lies.
//
// Each open group is laid out by itself (dagre) and then stands in its parent as one box, so that
// opening a cell costs as much as that cell. What comes from outside starts at a small mark
// that says where from, and what leaves ends at another.
//
// A box has an id: an operator its name, "stem_0"; a group its path and "/", "cells.0/"; a mark that
// of what lies outside and "<", from there, or ">", to there.
"use strict";

const TOP = "", PAD = 12, HEADER = 24;
const FEW = 60; // so many operators are shown at once
const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, bold) {
  pen.font = `${bold ? 600 : 400} 12px Inter, system-ui, sans-serif`;
  return pen.measureText(text).width;
}

// The module path of a group.
function pathOf(id) {
  return id.slice(0, -1);
}

// The groups around a node, from the outside in, without the top.
function groupsAround(graph, node) {
  const found = [];
  for (let id = node.group; id !== TOP; id = graph.groups[id]) found.unshift(id);
  return found;
}

class Boxes {
  // graph: what `graph_data` in page.py makes; badgeOf(group): a few words below a closed group's name.
  constructor(graph, badgeOf) {
    this.graph = graph;
    this.badgeOf = badgeOf;
    this.byId = new Map(graph.nodes.map((node) => [node.id, node]));
    this.children = new Map([TOP, ...Object.keys(graph.groups)].map((id) => [id, []]));
    this.size = new Map(); // how many operators a group holds
    this.edges = new Map([...this.children.keys()].map((id) => [id, new Map()]));
    this.plans = new Map(); // of the open groups, until something in them opens or closes
    this.open = new Set([TOP]);
    for (const node of graph.nodes) this.place(node);
    for (const [from, to, reads] of graph.edges) this.lift(graph.nodes[from], graph.nodes[to], reads);
    if (graph.nodes.length <= FEW) this.openAll();
  }

  // Each group stands where its first node does.
  place(node) {
    for (const id of groupsAround(this.graph, node)) {
      if (!this.size.has(id)) this.children.get(this.graph.groups[id]).push(id);
      this.size.set(id, (this.size.get(id) ?? 0) + 1);
    }
    this.children.get(node.group).push(node.id);
  }

  // An edge is drawn once where both ends are, and as a mark in each group that it enters or leaves.
  lift(source, reader, reads) {
    const a = [...groupsAround(this.graph, source), source.id], b = [...groupsAround(this.graph, reader), reader.id];
    let level = 0;
    while (a[level] === b[level]) level += 1;
    const add = (group, from, to) => {
      const key = `${from}\n${to}`, edges = this.edges.get(group);
      if (!edges.has(key)) edges.set(key, {from, to, source, reader, reads, count: 0});
      edges.get(key).count += 1;
    };
    add(level ? a[level - 1] : TOP, a[level], b[level]);
    for (let i = level; i < b.length - 1; i++) add(b[i], `${a[level]}<`, b[i + 1]);
    for (let i = level; i < a.length - 1; i++) add(a[i], a[i + 1], `${b[level]}>`);
  }

  nameOf(id) {
    const node = this.byId.get(id);
    if (node) return node.name || node.id;
    return pathOf(id.slice(this.graph.groups[id].length));
  }

  // ---- opening and closing

  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    for (let group = id; group !== undefined; group = this.graph.groups[group]) this.plans.delete(group);
    return this.open.has(id);
  }

  // Open these groups, those of them that there are, and no others.
  openOnly(ids) {
    const wanted = new Set([TOP, ...ids]);
    for (const id of this.children.keys()) if (this.open.has(id) !== wanted.has(id)) this.toggle(id);
  }

  openAll() {
    this.openOnly(this.children.keys());
  }

  // Open what a node lies in; whether anything of it was closed.
  openTo(node) {
    const closed = groupsAround(this.graph, node).filter((id) => !this.open.has(id));
    closed.forEach((id) => this.toggle(id));
    return closed.length > 0;
  }

  // ---- where they lie

  // {items, lines, width, height} of an open group: boxes as `measure` gives them, with x and y of their middles.
  plan(group) {
    if (!this.plans.has(group)) this.plans.set(group, this.layout(group));
    return this.plans.get(group);
  }

  layout(group) {
    const edges = [...this.edges.get(group).values()];
    const ids = new Set([...this.children.get(group), ...edges.flatMap(({from, to}) => [from, to])]);
    const g = new dagre.graphlib.Graph();
    g.setGraph({
      rankdir: "TB", nodesep: 16, ranksep: 26, marginx: 4, marginy: 6,
      ranker: ids.size > 150 ? "longest-path" : "network-simplex",
    });
    g.setDefaultEdgeLabel(() => ({}));
    const key = (id) => `:${id}`; // dagre keeps boxes in plain objects, where "constructor" is always found
    for (const id of ids) g.setNode(key(id), this.measure(id));
    for (const edge of edges) g.setEdge(key(edge.from), key(edge.to), {edge});
    dagre.layout(g);
    const {width, height} = g.graph();
    return {items: g.nodes().map((id) => g.node(id)), lines: g.edges().map((e) => g.edge(e)), width, height};
  }

  // A box's size, and what kind it is: `mark`, `node`, or a group, `inner` its plan where it is open.
  measure(id) {
    const node = this.byId.get(id), last = id.at(-1);
    if (node) return this.measureNode(id, node);
    if (last === "<" || last === ">") {
      const text = this.nameOf(id.slice(0, -1));
      return {id, mark: last, text, width: textWidth(text, false) + 26, height: 18};
    }
    if (this.open.has(id)) {
      const inner = this.plan(id), title = textWidth(this.nameOf(id), true) + 40;
      return {id, inner, width: Math.max(inner.width, title) + 2 * PAD, height: inner.height + HEADER + PAD};
    }
    const below = [`${this.size.get(id)} operators`, this.badgeOf?.(id)].filter(Boolean).join(" · ");
    const width = Math.max(textWidth(this.nameOf(id), true) + 24, textWidth(below, false)) + 26;
    return {id, below, width, height: 44};
  }

  measureNode(id, node) {
    const below = [node.name, node.dtype === "float" ? "" : node.text].filter(Boolean).join(" · ");
    const width = Math.max(textWidth(node.kind, true), 0.92 * textWidth(below, false)) + 22;
    return {id, node, below, width, height: below ? 40 : 26};
  }
}
