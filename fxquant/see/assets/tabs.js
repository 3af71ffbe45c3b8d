// Panels of which one is shown; the arrows go from tab to tab.
"use strict";

// named: {title: element}; onopen(title) when one is shown. Gives {list, panels, open(title), shown}.
function tabbed(named, onopen) {
  const names = Object.keys(named);
  const tabs = names.map((name) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => found.open(name),
    onkeydown: (event) => step(name, {ArrowRight: 1, ArrowLeft: -1}[event.key]),
  }, name));
  const panels = names.map((name) => el("div", {role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}`}, named[name]));

  function step(name, by) {
    if (!by) return;
    const to = (names.indexOf(name) + by + names.length) % names.length;
    found.open(names[to]);
    tabs[to].focus();
  }

  function open(name) {
    found.shown = name;
    names.forEach((other, i) => {
      tabs[i].setAttribute("aria-selected", String(other === name));
      tabs[i].tabIndex = other === name ? 0 : -1;
      panels[i].hidden = other !== name;
    });
    onopen(name);
  }

  const found = {list: el("nav", {class: "tabs", role: "tablist", "aria-label": "Parts of the report"}, ...tabs), panels, open, shown: null};
  return found;
}
