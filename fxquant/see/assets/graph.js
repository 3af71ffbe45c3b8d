// A graph whose groups open and close.
//
// Each open group is laid out by itself (dagre) and then stands in its parent as one box, so that
// opening a cell costs as much as that cell. What comes from outside starts at a small mark
// that says where from, and what leaves ends at another.
"use strict";

const PAD = 12, HEADER = 24, LINE = 15, TOP = "";
const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, bold) {
  pen.font = `${bold ? 600 : 400} 12px Inter, system-ui, sans-serif`;
  return pen.measureText(text).width;
}

class GraphView {
  // graph: what `graph_data` in page.py makes. options:
  //   classOf(node)    further classes of a node's box       colourOf(node)  its fill, or nothing
  //   badgeOf(group)   a few words behind a group's name     groupColourOf   its fill, or nothing
  //   onselect(node)   a node was chosen
  constructor(graph, options = {}) {
    this.graph = graph;
    this.options = options;
    this.open = new Set([TOP]);
    this.zoom = 1;
    this.chosen = null;
    this.read();
    if (graph.nodes.length <= 60) this.openAll(false);
    this.picture = svg("svg", {role: "group", "aria-label": `Graph of ${graph.name}`});
    this.host = el("div", {class: "graph", tabindex: 0, "aria-label": "Graph, scrolls"}, this.picture);
    this.element = el("div", {class: "graph-frame"}, this.toolbar(), this.host);
    this.host.addEventListener("wheel", (event) => this.wheel(event), {passive: false});
    this.host.addEventListener("pointerdown", (event) => this.drag(event));
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  toolbar() {
    const button = (text, title, onclick) => el("button", {type: "button", title, onclick}, text);
    return el("div", {class: "tools", role: "toolbar", "aria-label": "Graph"},
      button("Open all", "Open every group", () => this.openAll()),
      button("Close all", "Close every group", () => this.closeAll()),
      button("−", "Smaller", () => this.scale(this.zoom / 1.25)),
      button("+", "Larger", () => this.scale(this.zoom * 1.25)),
      button("Fit", "Fit the width", () => this.fit()));
  }

  // ---- what is inside what

  read() {
    const {nodes, edges, groups} = this.graph;
    this.byId = new Map(nodes.map((node) => [node.id, node]));
    this.children = new Map([[TOP, []], ...Object.keys(groups).map((id) => [id, []])]);
    this.size = new Map();
    const placed = new Set([TOP]);
    for (const node of nodes) {
      for (const id of this.path(node)) { // each group stands where its first node does
        this.size.set(id, (this.size.get(id) ?? 0) + 1);
        if (!placed.has(id)) { this.children.get(groups[id]).push(id); placed.add(id); }
      }
      this.children.get(node.group).push(node.id);
    }
    this.inside = new Map([...this.children.keys()].map((id) => [id, new Map()]));
    for (const [from, to, reads] of edges) this.lift(nodes[from], nodes[to], reads);
  }

  // The groups around a node, from the outside in, without the top.
  path(node) {
    const found = [];
    for (let id = node.group; id !== TOP; id = this.graph.groups[id]) found.unshift(id);
    return found;
  }

  // An edge is drawn once where both ends are, and as a mark in each group that it enters or leaves.
  lift(source, reader, reads) {
    const a = [...this.path(source), source.id], b = [...this.path(reader), reader.id];
    let level = 0;
    while (a[level] === b[level]) level += 1;
    this.add(level ? a[level - 1] : TOP, a[level], b[level], source, reader, reads);
    for (let i = level; i < b.length - 1; i++) this.add(b[i], `from ${a[level]}`, b[i + 1], source, reader, reads);
    for (let i = level; i < a.length - 1; i++) this.add(a[i], a[i + 1], `to ${b[level]}`, source, reader, reads);
  }

  add(group, from, to, source, reader, reads) {
    const key = `${from}|${to}`, edges = this.inside.get(group);
    if (!edges.has(key)) edges.set(key, {from, to, source, count: 0, reader, reads});
    edges.get(key).count += 1;
  }

  // ---- layout

  measure(id) {
    const mark = /^(from|to) (.*)$/.exec(id);
    if (mark) {
      const text = this.nameOf(mark[2]);
      return {id, mark: mark[1], text, width: textWidth(text, false) + 26, height: 18};
    }
    const node = this.byId.get(id);
    if (node) {
      const below = [node.name, node.dtype === "float" ? "" : node.text].filter(Boolean).join(" · ");
      const width = Math.max(textWidth(node.kind, true), 0.92 * textWidth(below, false)) + 22;
      return {id, node, below, width, height: below ? 40 : 26};
    }
    if (this.open.has(id)) {
      const inner = this.layout(id);
      const title = textWidth(this.nameOf(id), true) + 40;
      return {id, inner, width: Math.max(inner.width, title) + 2 * PAD, height: inner.height + HEADER + PAD};
    }
    const below = [`${this.size.get(id)} operators`, this.options.badgeOf?.(id)].filter(Boolean).join(" · ");
    const width = Math.max(textWidth(this.nameOf(id), true) + 24, textWidth(below, false)) + 26;
    return {id, closed: true, below, width, height: 44};
  }

  nameOf(id) {
    const parent = this.graph.groups[id];
    const node = this.byId.get(id);
    if (node) return node.name || node.id;
    return parent ? id.slice(parent.length + 1) : id;
  }

  layout(group) {
    const edges = [...this.inside.get(group).values()];
    const ids = new Set([...this.children.get(group), ...edges.flatMap(({from, to}) => [from, to])]);
    const g = new dagre.graphlib.Graph();
    g.setGraph({
      rankdir: "TB", nodesep: 16, ranksep: 26, marginx: 4, marginy: 6,
      ranker: ids.size > 150 ? "longest-path" : "network-simplex",
    });
    g.setDefaultEdgeLabel(() => ({}));
    for (const id of ids) g.setNode(id, this.measure(id));
    for (const edge of edges) g.setEdge(edge.from, edge.to, {edge});
    dagre.layout(g);
    const items = g.nodes().map((id) => g.node(id));
    const lines = g.edges().map((e) => g.edge(e));
    return {items, lines, width: g.graph().width, height: g.graph().height};
  }

  // ---- drawing

  draw() {
    const plan = this.layout(TOP);
    this.extent = plan;
    this.boxes = new Map();
    this.picture.replaceChildren(
      svg("defs", {}, svg("marker", {
        id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto",
      }, svg("path", {d: "M0,0 L8,4 L0,8 z", fill: "context-stroke"}))),
      this.drawPlan(plan, 0, 0));
    this.scale(this.zoom);
    this.mark();
  }

  drawPlan(plan, x, y) {
    const layer = svg("g", {transform: `translate(${x},${y})`});
    for (const line of plan.lines) layer.append(this.drawLine(line));
    for (const item of plan.items) layer.append(this.drawItem(item));
    return layer;
  }

  drawLine({points, edge}) {
    const {source, reader, reads, count} = edge;
    const path = `M${points[0].x},${points[0].y}` + curve(points.slice(1), points[0]);
    const more = count > 1 ? ` and ${count - 1} more` : "";
    const what = `${source.id} → ${reader.id} (${reads})${more}\n${source.text || source.dtype || ""}`;
    return svg("path", {
      d: path, class: `edge ${source.carries}`, "marker-end": "url(#tip)", "data-dtype": source.dtype, "data-scale": source.scale,
    }, svg("title", {}, what));
  }

  drawItem(item) {
    const left = item.x - item.width / 2, top = item.y - item.height / 2;
    const place = {transform: `translate(${left},${top})`};
    if (item.mark) return this.drawMark(item, place);
    if (item.node) return this.drawNode(item, place);
    return this.drawGroup(item, place);
  }

  drawMark(item, place) {
    const from = item.mark === "from";
    return svg("g", {...place, class: "mark"},
      svg("rect", {width: item.width, height: item.height, rx: 9}),
      svg("text", {x: item.width / 2, y: 13, "text-anchor": "middle"}, `${from ? "↓" : "→"} ${item.text}`),
      svg("title", {}, `${from ? "comes from" : "goes to"} ${item.text}`));
  }

  drawNode(item, place) {
    const {node} = item, middle = item.width / 2;
    const bits = node.bits ? `bits-${node.bits}` : "bits-float";
    const label = [node.kind, node.module || node.id, node.text].filter(Boolean).join(", ");
    const box = svg("g", {
      ...place, class: `node ${node.family} ${bits} ${this.options.classOf?.(node) ?? ""}`, tabindex: -1,
      role: "button", "aria-label": label, "data-id": node.id, onclick: () => this.choose(node.id),
    },
      svg("rect", {width: item.width, height: item.height, rx: 6, style: fill(this.options.colourOf?.(node))}),
      svg("text", {x: middle, y: 17, "text-anchor": "middle", class: "strong"}, node.kind),
      item.below ? svg("text", {x: middle, y: 17 + LINE, "text-anchor": "middle", class: "small"}, item.below) : null,
      svg("title", {}, label));
    this.boxes.set(node.id, box);
    return box;
  }

  drawGroup(item, place) {
    const opened = !item.closed, id = item.id;
    const rect = {width: item.width, height: item.height, rx: 8, style: opened ? null : fill(this.options.groupColourOf?.(id))};
    const button = svg("g", {
      class: "title", tabindex: -1, role: "button", "aria-expanded": String(opened), "data-group": id,
      "aria-label": `${id}, group of ${this.size.get(id)} operators`, onclick: () => this.toggle(id),
    });
    const box = svg("g", {...place, class: `group ${opened ? "open" : "closed"} ${this.options.groupClassOf?.(id) ?? ""}`}, svg("rect", rect), button);
    if (opened) {
      button.append(svg("rect", {class: "hit", width: item.width, height: HEADER, rx: 8}),
        svg("text", {x: 10, y: 16, class: "strong"}, `▾ ${this.nameOf(id)}`));
      box.append(this.drawPlan(item.inner, (item.width - item.inner.width) / 2, HEADER));
    } else {
      button.append(svg("rect", {class: "hit", width: item.width, height: item.height, rx: 8}),
        svg("text", {x: item.width / 2, y: 18, "text-anchor": "middle", class: "strong"}, `▸ ${this.nameOf(id)}`),
        svg("text", {x: item.width / 2, y: 18 + LINE, "text-anchor": "middle", class: "small"}, item.below));
    }
    this.boxes.set(id, button);
    return box;
  }

  // ---- what one can do with it

  toggle(id) {
    if (!this.open.delete(id)) this.open.add(id);
    this.redraw(id);
    tell(`${id} is ${this.open.has(id) ? "open" : "closed"}`);
    this.options.ontoggle?.(id);
  }

  // Draw anew; the box `id` stays where it was on the screen, and has the focus.
  redraw(id, focus = true) {
    const before = this.boxes.get(id)?.getBoundingClientRect();
    this.draw();
    const box = this.boxes.get(id), after = box?.getBoundingClientRect();
    if (!before || !after) return;
    this.host.scrollLeft += after.left + after.width / 2 - before.left - before.width / 2;
    this.host.scrollTop += after.top - before.top;
    if (focus) box.focus({preventScroll: true});
  }

  // Bring a box into sight: its top in the upper third.
  scrollTo(id) {
    const box = this.boxes.get(id)?.getBoundingClientRect(), host = this.host.getBoundingClientRect();
    if (!box) return;
    this.host.scrollLeft += box.left + box.width / 2 - host.left - host.width / 2;
    this.host.scrollTop += box.top - host.top - host.height / 3;
  }

  openAll(drawn = true) {
    for (const id of this.children.keys()) this.open.add(id);
    if (drawn) { this.draw(); this.options.ontoggle?.(); }
  }

  closeAll() {
    this.open = new Set([TOP]);
    this.draw();
    this.options.ontoggle?.();
  }

  scale(zoom) {
    this.zoom = Math.min(3, Math.max(0.1, zoom));
    const {width, height} = this.extent;
    this.picture.setAttribute("width", Math.ceil(width * this.zoom));
    this.picture.setAttribute("height", Math.ceil(height * this.zoom));
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  fit() {
    this.scale(Math.min(1.5, (this.host.clientWidth - 24) / this.extent.width));
  }

  // The graph may be wider than its frame: begin in the middle of it, at the top.
  centre() {
    this.host.scrollLeft = (this.host.scrollWidth - this.host.clientWidth) / 2;
  }

  choose(id) {
    this.chosen = id;
    this.mark();
    this.boxes.get(id)?.focus({preventScroll: true});
    this.options.onselect?.(this.byId.get(id));
  }

  // Open what a node lies in, choose it, and bring it into sight.
  reveal(id) {
    const node = this.byId.get(id);
    if (!node) return;
    for (const group of this.path(node)) this.open.add(group);
    this.draw();
    this.options.ontoggle?.();
    this.scrollTo(id);
    this.choose(id);
  }

  mark() {
    this.picture.querySelectorAll(".chosen").forEach((box) => box.classList.remove("chosen"));
    this.boxes.get(this.chosen)?.classList.add("chosen");
    const first = this.boxes.get(this.chosen) ?? this.boxes.values().next().value;
    first?.setAttribute("tabindex", 0); // one stop for Tab, arrows from there
  }

  // Enter opens and chooses; the arrows walk along the graph, and between what stands side by side.
  key(event) {
    const box = event.target.closest("[data-id], [data-group]");
    if (!box) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      box.dispatchEvent(new MouseEvent("click", {bubbles: true}));
      return;
    }
    const next = this.neighbour(box, event.key);
    if (!next) return;
    event.preventDefault();
    next.setAttribute("tabindex", 0);
    next.focus();
    next.scrollIntoView({block: "nearest", inline: "nearest"});
  }

  neighbour(box, key) {
    const way = {ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0]}[key];
    if (!way) return null;
    const centre = (b) => { const r = b.getBoundingClientRect(); return [r.left + r.width / 2, r.top + Math.min(r.height / 2, 20)]; };
    const [x, y] = centre(box);
    let best = null, least = Infinity;
    for (const other of this.boxes.values()) {
      const [u, v] = centre(other), ahead = (u - x) * way[0] + (v - y) * way[1];
      const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
      if (other !== box && ahead > 4 && ahead + 2 * aside < least) { best = other; least = ahead + 2 * aside; }
    }
    return best;
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // scrolls
    event.preventDefault();
    this.scale(this.zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
  }

  drag(event) {
    if (event.button !== 0 || event.target.closest("[data-id], [data-group]")) return;
    const {host} = this, start = [event.clientX + host.scrollLeft, event.clientY + host.scrollTop];
    const move = (e) => { host.scrollLeft = start[0] - e.clientX; host.scrollTop = start[1] - e.clientY; };
    const stop = () => { host.removeEventListener("pointermove", move); };
    host.addEventListener("pointermove", move);
    addEventListener("pointerup", stop, {once: true});
  }
}

function fill(colour) {
  return colour ? `fill: ${colour}` : null;
}

// A smooth line through points: each inner one bends it (quadratic, from middle to middle).
function curve(points) {
  let path = "";
  for (let i = 0; i < points.length - 1; i++) {
    const end = i === points.length - 2 ? points[i + 1] : middle(points[i], points[i + 1]);
    path += ` Q${points[i].x},${points[i].y} ${end.x},${end.y}`;
  }
  return path || ` L${points[0].x},${points[0].y}`;
}

function middle(a, b) {
  return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2};
}

// What colours and lines mean.
function legend(families) {
  const names = {
    layer: "layer", norm: "norm", activation: "activation", pool: "pool", sum: "sum, concat",
    boundary: "quantizer", end: "input, output", other: "other",
  };
  const swatch = (family) => el("li", {}, el("span", {class: `swatch ${family}`}), names[family]);
  const line = (kind, text) => el("li", {},
    svg("svg", {width: 26, height: 10, "aria-hidden": "true"}, svg("path", {d: "M1,5 H25", class: `edge ${kind}`})), text);
  return el("ul", {class: "legend", "aria-label": "Legend"},
    ...families.filter((family) => names[family]).map(swatch),
    line("uint", "unsigned integers"), line("int", "signed integers"), line("float", "floats"));
}

// The facts of a node, as a list of terms.
function facts(node) {
  const terms = [
    ["name", node.id], ["module", node.module], ["value", node.dtype],
    ["scale", short(node.scale, 4)], ["zero point", short(node.zero)], ["weight", node.weight],
    ["shape", node.shape?.join(" × ")],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== "–");
  return el("dl", {class: "facts"}, ...terms.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, String(value))]));
}
