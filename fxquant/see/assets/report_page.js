// The report of one network.
"use strict";

const BAD = 10, GOOD = 50; // dB, the ends of the ramp

class ReportPage {
  constructor(data) {
    this.data = data;
    this.layers = new Map(data.layers.map((layer) => [layer.node, layer]));
    this.byError = data.compared;
    this.view = this.graphView();
    this.keys = el("div", {}, this.key());
    this.table = layerTable(data, (layer) => this.choose(layer.node, true));
    this.side = el("aside", {"aria-label": "Chosen operator"},
      el("p", {class: "hint"}, "Choose an operator in the graph or in the table: its facts and histograms stand here."));
    this.tabs = tabbed({
      Graph: el("div", {}, this.keys, this.view.element), Layers: this.table.element, Passes: passLog(data.passes), Audit: auditTable(data.audit),
    }, (name) => this.opened(name));
    this.split = el("div", {class: "split"}, el("div", {style: "min-width: 0"}, ...this.tabs.panels), this.side);
    show(heading(data.network, `${data.stage}, ${data.graph.nodes.length} operators`),
      el("main", {}, el("div", {class: "cards"}, ...data.cards.map((card) => this.card(card))), this.tabs.list, this.split));
    this.tabs.open("Graph");
    this.view.centre();
  }

  // ---- the graph, coloured by error or by kind

  graphView() {
    const {data, layers} = this, least = leastOfGroups(data.graph, layers);
    const view = new GraphView(data.graph, {
      colourOf: (node) => !this.byError ? null : layers.has(node.id) ? heat(decibel(layers.get(node.id).alone)) : "var(--card)",
      groupColourOf: (group) => this.byError && least.has(group) ? heat(least.get(group)) : null,
      badgeOf: (group) => data.compared && least.has(group) ? `least ${inDecibel(least.get(group))}` : "",
      onselect: (node) => node && this.choose(node.id, false),
    });
    const colours = el("select", {"aria-label": "Colours", onchange: () => {
      this.byError = colours.value === "error";
      this.keys.replaceChildren(this.key());
      view.draw();
    }}, el("option", {value: "error"}, "Colours: error"), el("option", {value: "kind"}, "Colours: kind"));
    if (data.compared) view.tools.append(colours);
    return view;
  }

  // What the colours mean.
  key() {
    if (!this.byError) return legend([...new Set(this.data.graph.nodes.map((node) => node.family))]);
    const ramp = el("span", {class: "ramp", style: "background: linear-gradient(in oklab to right, var(--hot), var(--cold))"});
    return el("ul", {class: "legend"},
      el("li", {}, `signal to error of each operator by itself: ${BAD} dB or less`, ramp, `${GOOD} dB or more`));
  }

  // ---- what is chosen, and what is shown

  choose(id, reveal) {
    const node = this.view.boxes.byId.get(id), layer = this.layers.get(id);
    if (reveal) this.view.chosen = id;
    if (reveal && this.tabs.shown === "Graph") this.view.reveal(id);
    if (layer) this.table.mark(layer);
    this.side.replaceChildren(...[el("h2", {}, node?.kind ?? id), node && facts(node)].filter(Boolean),
      ...(layer ? measured(layer, this.data.compared) : []));
    tell(`${id} is chosen`);
  }

  opened(name) {
    const beside = name === "Graph" || name === "Layers";
    this.side.hidden = !beside;
    this.split.classList.toggle("whole", !beside);
    if (name === "Graph" && this.view.chosen) this.view.reveal(this.view.chosen); // it was chosen out of sight
  }

  card({value, what, tone, node}) {
    const go = () => { this.tabs.open("Graph"); this.choose(node, true); };
    return el("div", {class: `card ${tone ?? ""}`},
      node ? el("button", {type: "button", class: "value plain", title: "Show it", onclick: go}, value) : el("div", {class: "value"}, value),
      el("div", {class: "what"}, what));
  }
}

// ---- decibels; JSON knows no infinity, so `finite` in page.py writes words

function decibel(value) {
  return {inf: Infinity, "-inf": -Infinity, nan: -Infinity}[value] ?? value;
}

function inDecibel(value) {
  const size = decibel(value);
  return value === "nan" ? "not a number" : size === Infinity ? "equal" : size === -Infinity ? "−∞ dB" : `${size.toFixed(1)} dB`;
}

function heat(size) {
  const share = Math.min(1, Math.max(0, (GOOD - size) / (GOOD - BAD)));
  return `color-mix(in oklab, var(--hot) ${Math.round(100 * share)}%, var(--cold))`;
}

// The least decibels of each group's operators.
function leastOfGroups(graph, layers) {
  const least = new Map();
  for (const node of graph.nodes) {
    if (!layers.has(node.id)) continue;
    const size = decibel(layers.get(node.id).alone);
    for (const group of groupsAround(graph, node)) least.set(group, Math.min(least.get(group) ?? Infinity, size));
  }
  return least;
}

// ---- the table of layers, and the facts of one

function layerTable({layers, compared}, onchoose) {
  const number = (title, value, text, hint, large = true) => ({title, value, text, hint, large, number: true});
  const share = (title, key, hint) => number(title, (l) => l[key], (l) => percent(l[key]), hint);
  const size = (title, key, hint) => number(title, (l) => decibel(l[key]), (l) => inDecibel(l[key]).replace(" dB", ""), hint, false);
  const errors = [
    size("SQNR dB", "sqnr", "signal to error, as the network runs"),
    size("alone dB", "alone", "the same of this operator by itself"),
    number("max LSB", (l) => l.max_lsb, (l) => short(l.max_lsb), "the largest difference, in steps of the grid"),
  ];
  const verdict = {title: "verdict", text: (l) => l.why ?? "", value: (l) => l.why};
  return sortable("layers", [
    {title: "node", text: (l) => l.node, value: (l) => l.node},
    {title: "operator", text: (l) => l.operator, value: (l) => l.operator},
    ...(compared ? errors : []),
    share("saturated", "saturated", "codes at an end of the range, 0 left aside"),
    share("range used", "range_use", "share of the grid between the least and the greatest code"),
    number("multiply-adds", (l) => l.multiplies, (l) => short(l.multiplies), "for one input"),
    number("weight bytes", (l) => l.bytes || null, (l) => short(l.bytes || null), "of its integers"),
    ...(compared ? [verdict] : []),
  ], layers, {onchoose, classOf: (l) => l.why ? "bad" : "", id: (l) => l.node});
}

function measured(layer, compared) {
  const errors = [
    ["as it runs", inDecibel(layer.sqnr)], ["by itself", inDecibel(layer.alone)], ["cosine", short(layer.cosine, 6)],
    ["max LSB", short(layer.max_lsb)], ["verdict", layer.why ?? "as rounding explains"],
  ];
  return [
    el("h3", {}, "Measured"),
    terms([
      ...(compared ? errors : []),
      ["saturated", percent(layer.saturated)], ["range used", percent(layer.range_use)],
      ["multiply-adds", short(layer.multiplies)], ["weight bytes", short(layer.bytes || null)],
    ]),
    ...histogram("Values", layer.values), ...histogram("Weights", layer.weights),
  ];
}

// ---- passes and audit

function passLog(passes) {
  const named = (title, list) => list.length ? [el("h3", {}, title), logged(list, (node) => el("code", {}, node), 6)] : [];
  return el("div", {}, ...passes.map((step, i) => {
    const {changed, left_alone: alone, notes} = step, idle = !changed.length && !alone.length;
    return el("details", {class: idle ? "idle" : null},
      el("summary", {}, el("strong", {}, `${i + 1}. ${step.name}`), ` ${step.summary}`,
        el("span", {class: "count"}, `${nodeCount(step)}, ${changed.length} changes, ${alone.length} left alone`)),
      el("div", {class: "body"}, ...notes.map((note) => el("p", {}, note)),
        ...named("Left alone, and why", alone), ...named("Changed", changed), idle ? el("p", {class: "soft"}, "nothing to do") : null));
  }));
}

function auditTable({head, rows, result}) {
  const WORDS = 3; // so many columns begin with words; what is a number elsewhere sorts as one
  const sortKey = (text, i) => {
    const number = parseFloat(text.replace(/[,^]/g, ""));
    return i >= WORDS && !Number.isNaN(number) ? number : text === "-" ? null : text;
  };
  const columns = head.map((title, i) => ({title, text: (row) => row[i], number: i >= WORDS, value: (row) => sortKey(row[i], i)}));
  return el("div", {}, el("p", {}, result), rows.length ? sortable("audit", columns, rows).element : null);
}

new ReportPage(told());
