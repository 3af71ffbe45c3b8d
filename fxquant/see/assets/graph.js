// A graph whose groups open and close: how it is drawn, and what one can do with it.
"use strict";

const LINE = 15;

class GraphView {
  // graph: what `graph_data` in page.py makes. options:
  //   classOf(node)    further classes of a node's box       colourOf(node)  its fill, or nothing
  //   badgeOf(group)   a few words below a group's name      groupColourOf   its fill, or nothing
  //   groupClassOf     further classes of a group's box
  //   onselect(node)   a node was chosen                     ontoggle(group) one, or none said, opened or closed
  constructor(graph, options = {}) {
    this.options = options;
    this.boxes = new Boxes(graph, options.badgeOf);
    this.zoom = 1;
    this.chosen = null;
    this.picture = svg("svg", {role: "group", "aria-label": `Graph of ${graph.name}`});
    this.host = el("div", {class: "graph", tabindex: 0, "aria-label": "Graph, scrolls"}, this.picture);
    this.tools = this.toolbar();
    this.element = el("div", {class: "graph-frame"}, this.tools, this.host);
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
      button("Fit", "Fit the width", () => this.fit()),
      this.finder());
  }

  // Enter goes to the next operator that has these words in its name, module or kind.
  finder() {
    const count = el("span", {class: "soft", role: "status"});
    let words = "", at = 0;
    const find = (text) => {
      [words, at] = [text, text === words ? at + 1 : 0];
      const found = this.boxes.graph.nodes.filter(({id, module, kind}) => `${id} ${module} ${kind}`.toLowerCase().includes(words));
      count.textContent = found.length ? `${(at % found.length) + 1} of ${found.length}` : "none";
      if (found.length) this.reveal(found[at % found.length].id);
    };
    const input = el("input", {
      type: "search", placeholder: "Find an operator", "aria-label": "Find an operator",
      oninput: () => { words = count.textContent = ""; },
      onkeydown: (event) => {
        if (event.key !== "Enter" || !input.value.trim()) return;
        find(input.value.trim().toLowerCase());
        input.focus({preventScroll: true});
      },
    });
    return el("span", {class: "finder"}, input, count);
  }

  // ---- drawing

  draw() {
    this.extent = this.boxes.plan(TOP);
    this.drawn = new Map(); // what is drawn of each box, and takes the focus
    this.picture.replaceChildren(
      svg("defs", {}, svg("marker", {
        id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto",
      }, svg("path", {d: "M0,0 L8,4 L0,8 z", fill: "context-stroke"}))),
      this.drawPlan(this.extent, 0, 0));
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
    const path = `M${points[0].x},${points[0].y}` + curve(points.slice(1));
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
    const from = item.mark === "<";
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
    this.drawn.set(node.id, box);
    return box;
  }

  drawGroup(item, place) {
    const opened = Boolean(item.inner), id = item.id;
    const rect = {width: item.width, height: item.height, rx: 8, style: opened ? null : fill(this.options.groupColourOf?.(id))};
    const button = svg("g", {
      class: "title", tabindex: -1, role: "button", "aria-expanded": String(opened), "data-group": pathOf(id),
      "aria-label": `${pathOf(id)}, group of ${this.boxes.size.get(id)} operators`, onclick: () => this.toggle(id),
    });
    const box = svg("g", {...place, class: `group ${opened ? "open" : "closed"} ${this.options.groupClassOf?.(id) ?? ""}`}, svg("rect", rect), button);
    if (opened) {
      button.append(svg("rect", {class: "hit", width: item.width, height: HEADER, rx: 8}),
        svg("text", {x: 10, y: 16, class: "strong"}, `▾ ${this.boxes.nameOf(id)}`));
      box.append(this.drawPlan(item.inner, (item.width - item.inner.width) / 2, HEADER));
    } else {
      button.append(svg("rect", {class: "hit", width: item.width, height: item.height, rx: 8}),
        svg("text", {x: item.width / 2, y: 18, "text-anchor": "middle", class: "strong"}, `▸ ${this.boxes.nameOf(id)}`),
        svg("text", {x: item.width / 2, y: 18 + LINE, "text-anchor": "middle", class: "small"}, item.below));
    }
    this.drawn.set(id, button);
    return box;
  }

  // ---- what one can do with it

  toggle(id) {
    const opened = this.boxes.toggle(id);
    this.redraw(id);
    tell(`${pathOf(id)} is ${opened ? "open" : "closed"}`);
    this.options.ontoggle?.(id);
  }

  // Draw anew; the box `id` stays where it was on the screen, and has the focus.
  redraw(id, focus = true) {
    const before = this.drawn.get(id)?.getBoundingClientRect();
    this.draw();
    const box = this.drawn.get(id), after = box?.getBoundingClientRect();
    if (!before || !after) return;
    this.host.scrollLeft += after.left + after.width / 2 - before.left - before.width / 2;
    this.host.scrollTop += after.top - before.top;
    if (focus) box.focus({preventScroll: true});
  }

  // Bring a box into sight: its top in the upper third.
  scrollTo(id) {
    const box = this.drawn.get(id)?.getBoundingClientRect(), host = this.host.getBoundingClientRect();
    if (!box) return;
    this.host.scrollLeft += box.left + box.width / 2 - host.left - host.width / 2;
    this.host.scrollTop += box.top - host.top - host.height / 3;
  }

  openAll() {
    this.boxes.openAll();
    this.draw();
    this.options.ontoggle?.();
  }

  closeAll() {
    this.boxes.openOnly([]);
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
    this.drawn.get(id)?.focus({preventScroll: true});
    this.options.onselect?.(this.boxes.byId.get(id));
  }

  // Open what a node lies in, choose it, and bring it into sight.
  reveal(id) {
    const node = this.boxes.byId.get(id);
    if (!node) return;
    if (this.boxes.openTo(node)) {
      this.draw();
      this.options.ontoggle?.();
    }
    this.scrollTo(id);
    this.choose(id);
  }

  mark() {
    this.picture.querySelectorAll(".chosen").forEach((box) => box.classList.remove("chosen"));
    this.drawn.get(this.chosen)?.classList.add("chosen");
    this.stop(this.drawn.get(this.chosen) ?? this.drawn.values().next().value);
  }

  // Tab stops at one box alone; the arrows go on from there.
  stop(box) {
    this.picture.querySelectorAll("[tabindex='0']").forEach((other) => other.setAttribute("tabindex", -1));
    box?.setAttribute("tabindex", 0);
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
    this.stop(next);
    next.focus();
    next.scrollIntoView({block: "nearest", inline: "nearest"});
  }

  neighbour(box, key) {
    const way = {ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0]}[key];
    if (!way) return null;
    const centre = (b) => { const r = b.getBoundingClientRect(); return [r.left + r.width / 2, r.top + Math.min(r.height / 2, 20)]; };
    const [x, y] = centre(box);
    let best = null, least = Infinity;
    for (const other of this.drawn.values()) {
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
  return terms([
    ["name", node.id], ["module", node.module], ["value", node.dtype], ["scale", short(node.scale, 4)],
    ["zero point", short(node.zero)], ["weight", node.weight], ["shape", node.shape?.join(" × ")],
  ]);
}
