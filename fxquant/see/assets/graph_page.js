// The page of one graph.
"use strict";

class GraphPage {
  constructor(graph) {
    this.side = el("aside", {"aria-label": "Chosen operator"},
      el("p", {class: "hint"}, "Click a group to open it, an operator to see its facts."));
    const view = new GraphView(graph, {onselect: (node) => this.side.replaceChildren(el("h2", {}, node.kind), facts(node))});
    const families = [...new Set(graph.nodes.map((node) => node.family))];
    show(
      heading(graph.name, `${graph.stage}, ${graph.nodes.length} operators`),
      el("main", {}, legend(families), el("div", {class: "split"}, view.element, this.side)));
    view.centre();
  }
}

new GraphPage(told("graph"));
