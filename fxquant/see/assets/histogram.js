// How values lie, beside the range that their grid can hold.
"use strict";

const WIDE = 300, HIGH = 104, BASE = HIGH - 20;

// h: {low, high, counts, range, outside} as histogram.py has it; nothing for none.
function histogram(title, h) {
  if (!h) return [];
  const low = Math.min(h.low, h.range?.[0] ?? h.low), high = Math.max(h.high, h.range?.[1] ?? h.high);
  const x = (value) => (WIDE * (value - low)) / (high - low || 1);
  const text = `from ${short(h.low)} to ${short(h.high)}` +
    (h.range ? `; the grid holds ${short(h.range[0])} to ${short(h.range[1])}, ${percent(h.outside)} lies outside` : "");
  return [
    el("h3", {}, title),
    svg("svg", {class: "histogram", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title} ${text}`},
      ...limits(h, x), ...bars(h, x), svg("path", {class: "axis", d: `M0,${BASE} H${WIDE}`}),
      svg("text", {x: 0, y: HIGH - 5}, short(low)), svg("text", {x: WIDE, y: HIGH - 5, "text-anchor": "end"}, short(high))),
    el("p", {class: "soft"}, `${text}. Heights are square roots of counts.`),
  ];
}

function limits({range}, x) {
  if (!range) return [];
  const [left, right] = range.map(x);
  return [
    svg("rect", {class: "range", x: left, y: 0, width: right - left, height: BASE}),
    ...[left, right].map((end) => svg("path", {class: "limit", d: `M${end},0 V${BASE}`})),
  ];
}

function bars({low, high, counts, range}, x) {
  const wide = (high - low) / counts.length, most = Math.max(...counts, 1);
  return counts.map((count, i) => {
    const left = low + i * wide, middle = left + wide / 2;
    const cut = range && (middle < range[0] || middle > range[1]);
    const tall = count ? Math.max(1, (BASE - 4) * Math.sqrt(count / most)) : 0;
    return svg("rect", {
      class: `bar ${cut ? "cut" : ""}`, x: x(left), y: BASE - tall, width: Math.max(0.6, x(left + wide) - x(left) - 0.4), height: tall,
    });
  });
}
