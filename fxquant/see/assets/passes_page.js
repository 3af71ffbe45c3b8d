// The page of a recipe: one pass at a time, the graph before it and after it.
"use strict";

class PassesPage {
  constructor(steps) {
    this.steps = withGraphs(steps);
    this.slider = el("input", {
      type: "range", min: 1, max: steps.length, "aria-label": "Pass", oninput: () => this.go(this.slider.valueAsNumber - 1),
    });
    this.back = el("button", {type: "button", onclick: () => this.go(this.at - 1)}, "← Back");
    this.next = el("button", {type: "button", onclick: () => this.go(this.at + 1)}, "Next →");
    this.name = el("strong");
    this.what = el("p", {class: "soft"});
    [this.left, this.right, this.log] = [el("div"), el("div"), el("div")];
    show(heading("Every pass", `${steps.length} passes, what each changed and what it left alone`), this.main());
    this.go(Math.max(0, steps.findIndex((step) => step.changed.length)));
  }

  main() {
    const mark = (kind, text) => el("span", {style: `border-color: var(--${kind})`}, text);
    return el("main", {},
      el("div", {class: "steps"}, this.back, this.slider, this.next),
      el("div", {class: "steps"}, this.name, this.what),
      el("div", {class: "diff-legend"}, mark("removed", "removed"), mark("added", "added"), mark("changed", "changed"),
        mark("soft", "left alone, with a reason")),
      el("div", {class: "pair"}, this.left, this.right),
      this.log);
  }

  go(number) {
    this.at = Math.min(this.steps.length - 1, Math.max(0, number));
    const step = this.steps[this.at];
    this.draw(step);
    this.slider.value = this.at + 1;
    this.slider.setAttribute("aria-valuetext", step.name);
    this.back.disabled = this.at === 0;
    this.next.disabled = this.at === this.steps.length - 1;
    tell(`Pass ${this.at + 1} of ${this.steps.length}: ${step.name}`);
  }

  draw(step) {
    this.name.textContent = `${this.at + 1}. ${step.name}`;
    this.what.textContent = `${step.summary} (${nodeCount(step)})`;
    const changed = new Set(step.altered), refused = new Set(step.left_alone.map((entry) => entry.node));
    const views = [
      markedView(step.before, {removed: new Set(step.removed), changed, refused}),
      markedView(step.after, {added: new Set(step.added), changed, refused}),
    ];
    follow(...views);
    this.left.replaceChildren(el("h2", {}, `before: ${step.before.stage}`), views[0].element);
    this.right.replaceChildren(el("h2", {}, `after: ${step.after.stage}`), views[1].element);
    this.log.replaceChildren(...step.notes.map((note) => el("p", {}, note)), ...this.entries(step, views));
    views.forEach((view) => view.centre());
  }

  // What it changed, and what it left alone; a click shows the node on both sides.
  entries(step, views) {
    const link = (node) => el("button", {type: "button", onclick: () => views.forEach((view) => view.reveal(node))}, node);
    const folded = (title, list, open) => list.length
      ? [el("details", {open}, el("summary", {}, title), el("div", {class: "body"}, logged(list, link)))] : [];
    return [
      ...folded(`${step.changed.length} changes`, step.changed, false),
      ...folded(`${step.left_alone.length} left alone, and why`, step.left_alone, true),
    ];
  }
}

// A graph that was not told is the one before it.
function withGraphs(steps) {
  let shown = null;
  return steps.map((step) => {
    const before = step.before ?? shown;
    shown = step.after ?? before;
    return {...step, before, after: shown};
  });
}

// A graph whose boxes say what a pass did with them. marks: by class, the ids of nodes; the first that has one counts.
function markedView(graph, marks) {
  const classOf = (node) => Object.keys(marks).find((name) => marks[name].has(node.id)) ?? "same";
  const touched = new Map(); // how many nodes of each group it changed
  for (const node of graph.nodes) {
    if (["same", "refused"].includes(classOf(node))) continue;
    for (const group of groupsAround(graph, node)) touched.set(group, (touched.get(group) ?? 0) + 1);
  }
  return new GraphView(graph, {
    classOf,
    badgeOf: (group) => touched.has(group) ? `${touched.get(group)} changed` : "",
    groupClassOf: (group) => touched.has(group) ? "touched" : "",
  });
}

// What is opened on one side opens on the other, and both scroll together.
function follow(a, b) {
  for (const [one, other] of [[a, b], [b, a]]) {
    one.options.ontoggle = (group) => {
      other.boxes.openOnly(one.boxes.open);
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

new PassesPage(told("steps"));
