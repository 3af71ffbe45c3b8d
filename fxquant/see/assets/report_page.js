// The report of one network.
"use strict";

(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const layers = new Map(data.layers.map((layer) => [layer.node, layer]));
  const decibel = (value) => value === "inf" ? Infinity : value === "-inf" || value === "nan" ? -Infinity : value;
  const inDecibel = (value) => ({inf: "equal", "-inf": "−∞", nan: "not a number"})[value] ?? value.toFixed(1);

  // ---- the graph, coloured by error or by kind

  const BAD = 10, GOOD = 50; // dB, the ends of the ramp
  const heat = (value) => {
    const share = Math.min(1, Math.max(0, (GOOD - value) / (GOOD - BAD)));
    return `color-mix(in oklab, var(--hot) ${Math.round(100 * share)}%, var(--cold))`;
  };
  let byError = data.compared;
  const worstOf = new Map(); // the least of each group
  const view = new GraphView(data.graph, {
    colourOf: (node) => byError && layers.has(node.id) ? heat(decibel(layers.get(node.id).alone)) : byError ? "var(--card)" : null,
    groupColourOf: (group) => byError && worstOf.has(group) ? heat(worstOf.get(group)) : null,
    badgeOf: (group) => data.compared && worstOf.has(group) ? `least ${inDecibel(finite(worstOf.get(group)))}${Number.isFinite(worstOf.get(group)) ? " dB" : ""}` : "",
    onselect: (node) => node && choose(node.id, false),
  });
  function finite(value) { return value === Infinity ? "inf" : value === -Infinity ? "-inf" : value; }
  for (const node of data.graph.nodes) {
    const layer = layers.get(node.id);
    if (!layer) continue;
    for (const group of view.path(node)) worstOf.set(group, Math.min(worstOf.get(group) ?? Infinity, decibel(layer.alone)));
  }
  const families = [...new Set(data.graph.nodes.map((node) => node.family))];
  const keys = el("div");
  const colours = el("select", {"aria-label": "Colours", onchange: () => { byError = colours.value === "error"; recolour(); }},
    el("option", {value: "error"}, "Colours: error"), el("option", {value: "kind"}, "Colours: kind"));
  if (data.compared) view.element.firstChild.append(colours);
  function recolour() {
    keys.replaceChildren(byError ? ramp() : legend(families));
    view.draw();
  }
  function ramp() {
    const bar = el("span", {class: "ramp", style: "background: linear-gradient(in oklab to right, var(--hot), var(--cold))"});
    return el("ul", {class: "legend"},
      el("li", {}, `signal to error of each operator by itself: ${BAD} dB or less`, bar, `${GOOD} dB or more`));
  }

  // ---- the table

  const number = (title, key, text, hint, large = false) => ({
    title, number: true, hint, large, value: (layer) => key(layer), text: (layer) => text(layer),
  });
  const share = (title, key, hint) => number(title, (l) => l[key], (l) => percent(l[key]), hint, true);
  const errors = [
    number("SQNR dB", (l) => decibel(l.sqnr), (l) => inDecibel(l.sqnr), "signal to error, as the network runs"),
    number("alone dB", (l) => decibel(l.alone), (l) => inDecibel(l.alone), "the same of this operator by itself"),
    number("max LSB", (l) => l.max_lsb, (l) => short(l.max_lsb), "the largest difference, in steps of the grid", true),
  ];
  const table = sortable("layers", [
    {title: "node", text: (l) => l.node, value: (l) => l.node},
    {title: "operator", text: (l) => l.operator, value: (l) => l.operator},
    ...(data.compared ? errors : []),
    share("saturated", "saturated", "codes at an end of the range, 0 left aside"),
    share("range used", "range_use", "share of the grid between the least and the greatest code"),
    number("multiply-adds", (l) => l.multiplies, (l) => short(l.multiplies), "for one input", true),
    number("weight bytes", (l) => l.bytes || null, (l) => l.bytes ? short(l.bytes) : "–", "", true),
    ...(data.compared ? [{title: "verdict", text: (l) => l.why ?? "", value: (l) => l.why}] : []),
  ], data.layers, {onchoose: (layer) => choose(layer.node, true), classOf: (l) => l.why ? "bad" : "", id: (l) => l.node});

  // ---- the chosen operator

  const side = el("aside", {"aria-label": "Chosen operator"},
    el("p", {class: "hint"}, "Choose an operator in the graph or in the table: its facts and histograms stand here."));

  function choose(id, reveal) {
    const node = view.byId.get(id), layer = layers.get(id);
    if (reveal) view.chosen = id;
    if (reveal && !bodies[0].hidden) view.reveal(id);
    if (layer) table.mark(layer);
    side.replaceChildren(el("h2", {}, node?.kind ?? id), node ? facts(node) : null, ...(layer ? measured(layer) : []));
    tell(`${id} is chosen`);
  }

  function measured(layer) {
    const terms = data.compared ? [
      ["as it runs", inDecibel(layer.sqnr) + (layer.sqnr === "inf" ? "" : " dB")],
      ["by itself", inDecibel(layer.alone) + (layer.alone === "inf" ? "" : " dB")],
      ["cosine", short(layer.cosine, 6)], ["max LSB", short(layer.max_lsb)], ["verdict", layer.why ?? "as rounding explains"],
    ] : [];
    terms.push(["saturated", percent(layer.saturated)], ["range used", percent(layer.range_use)]);
    if (layer.multiplies) terms.push(["multiply-adds", short(layer.multiplies)]);
    if (layer.bytes) terms.push(["weight bytes", short(layer.bytes)]);
    return [
      el("h3", {}, "Measured"),
      el("dl", {class: "facts"}, ...terms.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
      ...histogram("Values", layer.values), ...histogram("Weights", layer.weights),
    ];
  }

  function histogram(title, h) {
    if (!h) return [];
    const W = 300, H = 96, base = H - 16, most = Math.max(...h.counts, 1);
    const [low, high] = [Math.min(h.low, h.range?.[0] ?? h.low), Math.max(h.high, h.range?.[1] ?? h.high)];
    const x = (value) => (W * (value - low)) / (high - low || 1);
    const wide = (h.high - h.low) / h.counts.length;
    const bars = h.counts.map((count, i) => {
      const at = h.low + i * wide, middle = at + wide / 2;
      const cut = h.range && (middle < h.range[0] || middle > h.range[1]);
      const tall = count ? Math.max(1, (base - 4) * Math.sqrt(count / most)) : 0;
      return svg("rect", {class: `bar ${cut ? "cut" : ""}`, x: x(at), y: base - tall, width: Math.max(0.6, x(at + wide) - x(at) - 0.4), height: tall});
    });
    const limits = h.range ? [
      svg("rect", {class: "range", x: x(h.range[0]), y: 0, width: x(h.range[1]) - x(h.range[0]), height: base}),
      ...h.range.map((end) => svg("path", {class: "limit", d: `M${x(end)},0 V${base}`})),
    ] : [];
    const text = `from ${short(h.low)} to ${short(h.high)}` +
      (h.range ? `; the grid holds ${short(h.range[0])} to ${short(h.range[1])}, ${percent(h.outside)} lies outside` : "");
    return [
      el("h3", {}, title),
      svg("svg", {class: "histogram", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} ${text}`},
        ...limits, ...bars, svg("path", {class: "axis", d: `M0,${base} H${W}`}),
        svg("text", {x: 0, y: H - 3}, short(low)), svg("text", {x: W, y: H - 3, "text-anchor": "end"}, short(high))),
      el("p", {class: "soft"}, `${text}. Heights are square roots of counts.`),
    ];
  }

  // ---- passes and audit

  function passes() {
    const entries = (list) => {
      const by = new Map();
      for (const {node, text} of list) by.set(text, [...(by.get(text) ?? []), node]);
      return el("ul", {class: "entries"}, ...[...by].map(([text, nodes]) => el("li", {}, el("code", {}, nodes.slice(0, 6).join(", ")),
        nodes.length > 6 ? ` and ${nodes.length - 6} more` : "", `: ${text}`)));
    };
    return el("div", {}, ...data.passes.map((step, i) => el("details", {class: step.changed.length + step.left_alone.length ? null : "idle"},
      el("summary", {}, el("strong", {}, `${i + 1}. ${step.name}`), ` ${step.summary}`,
        el("span", {class: "count"}, `${step.nodes_before} → ${step.nodes_after} nodes, ${step.changed.length} changes, ${step.left_alone.length} left alone`)),
      el("div", {class: "body"}, ...step.notes.map((note) => el("p", {}, note)),
        step.left_alone.length ? el("h3", {}, "Left alone, and why") : null, step.left_alone.length ? entries(step.left_alone) : null,
        step.changed.length ? el("h3", {}, "Changed") : el("p", {class: "soft"}, "nothing to do"), entries(step.changed)))));
  }

  function audited() {
    const {head, rows, result} = data.audit;
    const columns = head.map((title, i) => ({
      title, text: (row) => row[i], number: i > 2,
      value: (row) => { const n = parseFloat(row[i].replace(/[,^]/g, "")); return i > 2 && !Number.isNaN(n) ? n : row[i] === "-" ? null : row[i]; },
    }));
    return el("div", {}, el("p", {}, result), rows.length ? sortable("audit", columns, rows).element : null);
  }

  // ---- together

  const graph = el("div", {}, keys, view.element);
  const panels = {Graph: graph, Layers: table.element, Passes: passes(), Audit: audited()};
  const names = Object.keys(panels);
  const tabs = names.map((name) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => open(name),
    onkeydown: (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (step) { const to = names[(names.indexOf(name) + step + names.length) % names.length]; open(to); document.getElementById(`tab-${to}`).focus(); }
    },
  }, name));
  const bodies = names.map((name) => el("div", {role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`}, panels[name]));
  const split = el("div", {class: "split"}, el("div", {style: "min-width: 0"}, ...bodies), side);

  function open(name) {
    names.forEach((other, i) => {
      tabs[i].setAttribute("aria-selected", String(other === name));
      tabs[i].tabIndex = other === name ? 0 : -1;
      bodies[i].hidden = other !== name;
    });
    const beside = name === "Graph" || name === "Layers";
    side.hidden = !beside;
    split.classList.toggle("whole", !beside);
    if (name === "Graph" && view.chosen) view.reveal(view.chosen); // it was chosen out of sight
  }

  const cards = data.cards.map((card) => el("div", {class: `card ${card.tone ?? ""}`},
    card.node ? el("button", {type: "button", class: "value plain", title: "Show it", onclick: () => { open("Graph"); choose(card.node, true); }}, card.value)
      : el("div", {class: "value"}, card.value),
    el("div", {class: "what"}, card.what)));
  show(heading(data.network, `${data.stage}, ${data.graph.nodes.length} operators`),
    el("main", {}, el("div", {class: "cards"}, ...cards), el("nav", {class: "tabs", role: "tablist"}, ...tabs), split));
  open("Graph");
  recolour();
  view.centre();
})();
