// What passes changed and what they left alone.
"use strict";

// entries: [{node, text}]; nodes of one text stand together, at most so many of them, as `name(node)` shows them.
function logged(entries, name, most = Infinity) {
  const by = Map.groupBy(entries, ({text}) => text);
  const lines = [...by].map(([text, told]) => {
    const names = told.slice(0, most).flatMap(({node}, i) => (i ? [", ", name(node)] : [name(node)]));
    const more = told.length > most ? ` and ${told.length - most} more` : "";
    return el("li", {}, ...names, `${more}: ${text}`);
  });
  return el("ul", {class: "entries"}, ...lines);
}

function nodeCount({nodes_before, nodes_after}) {
  return nodes_before === nodes_after ? `${nodes_after} nodes` : `${nodes_before} → ${nodes_after} nodes`;
}
