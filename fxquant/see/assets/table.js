// A table that sorts by its headings and is searched.
"use strict";

// columns: [{title, text(row), value(row) to sort by, number, hint}]; onchoose(row) when one is chosen.
function sortable(caption, columns, rows, {onchoose, classOf, id} = {}) {
  let by = null, down = false, words = "";
  const body = el("tbody"), count = el("span", {class: "soft", role: "status"});
  const heads = columns.map((column) => {
    const button = el("button", {type: "button", title: column.hint, onclick: () => sort(column)}, column.title);
    return el("th", {scope: "col", class: column.number ? "number" : null}, button);
  });
  const lines = new Map(rows.map((row) => [row, line(row)]));
  const search = el("input", {
    type: "search", placeholder: `Search ${rows.length} rows`, "aria-label": `Search ${caption}`,
    oninput: () => { words = search.value.toLowerCase(); fillBody(); },
  });

  function line(row) {
    const cells = columns.map((column) => el("td", {class: column.number ? "number" : null}, column.text(row)));
    const choose = onchoose && (() => { mark(row); onchoose(row); });
    return el("tr", {
      class: [onchoose ? "link" : "", classOf?.(row) ?? ""].join(" "), "data-row": id?.(row), tabindex: onchoose ? 0 : null,
      onclick: choose ?? (() => {}), onkeydown: (event) => { if (event.key === "Enter") choose?.(); },
    }, ...cells);
  }

  function mark(row) {
    body.querySelectorAll(".chosen").forEach((other) => { other.classList.remove("chosen"); other.removeAttribute("aria-current"); });
    lines.get(row)?.classList.add("chosen");
    lines.get(row)?.setAttribute("aria-current", "true");
  }

  function sort(column) {
    [by, down] = [column, by === column ? !down : Boolean(column.number && column.large)];
    heads.forEach((head, i) => {
      if (columns[i] === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    fillBody();
    tell(`sorted by ${column.title}, ${down ? "descending" : "ascending"}`);
  }

  function order(a, b) {
    const x = by.value(a), y = by.value(b);
    if (x === y) return 0;
    if (x === null || x === undefined) return 1; // what is not known stands last
    if (y === null || y === undefined) return -1;
    return (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", {numeric: true})) * (down ? -1 : 1);
  }

  function fillBody() {
    const found = rows.filter((row) => columns.some((column) => String(column.text(row)).toLowerCase().includes(words)));
    if (by) found.sort(order);
    body.replaceChildren(...found.map((row) => lines.get(row)));
    count.textContent = words ? `${found.length} of ${rows.length}` : `${rows.length} rows`;
  }

  fillBody();
  const table = el("table", {}, el("caption", {class: "unseen"}, caption), el("thead", {}, el("tr", {}, ...heads)), body);
  return {element: el("div", {}, el("div", {class: "table-tools"}, search, count), el("div", {class: "scroll", tabindex: 0}, table)), mark};
}
