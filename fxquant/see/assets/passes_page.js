// The page of a recipe: one pass at a time, the graph before it and after it.
"use strict";

(function () {
  const {steps} = JSON.parse(document.getElementById("data").textContent);
  let shown = null;
  for (const step of steps) { // what was not told again is as it was
    step.before ??= shown;
    step.after ??= step.before;
    shown = step.after;
  }
  let at = Math.max(0, steps.findIndex((step) => step.changed.length));
  const slider = el("input", {
    type: "range", min: 1, max: steps.length, value: at + 1, "aria-label": "Pass",
    oninput: () => go(slider.valueAsNumber - 1),
  });
  const back = el("button", {type: "button", onclick: () => go(at - 1)}, "← Back");
  const next = el("button", {type: "button", onclick: () => go(at + 1)}, "Next →");
  const name = el("strong"), what = el("p", {class: "soft"});
  const left = el("div"), right = el("div"), log = el("div");

  function go(number) {
    at = Math.min(steps.length - 1, Math.max(0, number));
    draw(steps[at]);
    slider.value = at + 1;
    slider.setAttribute("aria-valuetext", steps[at].name);
    back.disabled = at === 0;
    next.disabled = at === steps.length - 1;
    tell(`Pass ${at + 1} of ${steps.length}: ${steps[at].name}`);
  }

  function draw(step) {
    name.textContent = `${at + 1}. ${step.name}`;
    const count = step.nodes_before === step.nodes_after ? `${step.nodes_after} nodes`
      : `${step.nodes_before} → ${step.nodes_after} nodes`;
    what.textContent = `${step.summary} (${count})`;
    const refused = new Set(step.left_alone.map((entry) => entry.node));
    const changed = new Set(step.altered);
    const views = [
      view(step.before, {removed: new Set(step.removed), changed}, refused),
      view(step.after, {added: new Set(step.added), changed}, refused),
    ];
    follow(...views);
    left.replaceChildren(el("h2", {}, `before: ${step.before.stage}`), views[0].element);
    right.replaceChildren(el("h2", {}, `after: ${step.after.stage}`), views[1].element);
    const reveal = (id) => views.forEach((v) => v.reveal(id));
    log.replaceChildren(
      ...step.notes.map((note) => el("p", {}, note)),
      entries(`${step.changed.length} changes`, step.changed, reveal),
      entries(`${step.left_alone.length} left alone, and why`, step.left_alone, reveal, true));
    views.forEach((v) => v.centre());
  }

  function view(graph, marks, refused) {
    const classOf = (node) => {
      const mark = Object.keys(marks).find((key) => marks[key].has(node.id));
      return mark ?? (refused.has(node.id) ? "refused" : "same");
    };
    const touched = new Map();
    const v = new GraphView(graph, {
      classOf,
      badgeOf: (group) => touched.get(group) ? `${touched.get(group)} changed` : "",
      groupClassOf: (group) => touched.get(group) ? "touched" : "",
    });
    for (const node of graph.nodes) {
      if (["same", "refused"].includes(classOf(node))) continue;
      for (const group of v.path(node)) touched.set(group, (touched.get(group) ?? 0) + 1);
    }
    v.draw();
    return v;
  }

  // What is opened on one side opens on the other, and both scroll together.
  function follow(a, b) {
    for (const [one, other] of [[a, b], [b, a]]) {
      one.options.ontoggle = (group) => {
        other.open = new Set([...one.open].filter((id) => other.children.has(id)));
        other.redraw(group, false);
        if (group) [one, other].forEach((view) => view.scrollTo(group));
      };
      one.host.addEventListener("scroll", () => {
        const share = one.host.scrollTop / Math.max(1, one.host.scrollHeight - one.host.clientHeight);
        const top = share * (other.host.scrollHeight - other.host.clientHeight);
        if (one.host.matches(":hover, :focus-within")) other.host.scrollTop = top;
      });
    }
  }

  function entries(title, list, reveal, open = false) {
    const by = new Map();
    for (const {node, text} of list) by.set(text, [...(by.get(text) ?? []), node]);
    const link = (node) => el("button", {type: "button", onclick: () => reveal(node)}, node);
    const lines = [...by].map(([text, nodes]) => el("li", {},
      ...nodes.flatMap((node, i) => (i ? [", ", link(node)] : [link(node)])), `: ${text}`));
    if (!lines.length) return null;
    return el("details", {open}, el("summary", {}, title), el("div", {class: "body"}, el("ul", {class: "entries"}, ...lines)));
  }

  const mark = (kind, text) => el("span", {style: `border-color: var(--${kind})`}, text);
  show(
    heading("Every pass", `${steps.length} passes, what each changed and what it left alone`),
    el("main", {},
      el("div", {class: "steps"}, back, slider, next),
      el("div", {class: "steps"}, name, what),
      el("div", {class: "diff-legend"}, mark("removed", "removed"), mark("added", "added"), mark("changed", "changed"),
        mark("soft", "left alone, with a reason")),
      el("div", {class: "pair"}, left, right),
      log));
  go(at);
})();
