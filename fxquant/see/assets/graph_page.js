// The page of one graph.
"use strict";

(function () {
  const {graph} = JSON.parse(document.getElementById("data").textContent);
  const side = el("aside", {"aria-label": "Chosen operator"}, el("p", {class: "hint"}, "Click a group to open it, an operator to see its facts."));
  const view = new GraphView(graph, {onselect: (node) => side.replaceChildren(el("h2", {}, node.kind), facts(node))});
  const families = [...new Set(graph.nodes.map((node) => node.family))];
  show(
    heading(graph.name, `${graph.stage}, ${graph.nodes.length} operators`),
    el("main", {class: "tall"}, legend(families), el("div", {class: "split"}, view.element, side)));
  view.centre();
})();
