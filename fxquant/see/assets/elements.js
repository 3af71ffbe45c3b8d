// Small pieces that every page is made of.
"use strict";

// An HTML element: el("td", {class: "number"}, "3").
function el(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// What the page was told, or one part of it.
function told(part) {
  const all = JSON.parse(document.getElementById("data").textContent);
  return part ? all[part] : all;
}

// A list of terms and what they are; what is not known is left out.
function terms(pairs) {
  const known = pairs.filter(([, value]) => ![undefined, null, "", UNKNOWN].includes(value));
  return el("dl", {class: "facts"}, ...known.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, String(value))]));
}

const UNKNOWN = "–";

// A number in few characters; what is not known is a dash.
function short(value, digits = 3) {
  if (value === null || value === undefined) return UNKNOWN;
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(digits - 1) : value.toPrecision(digits);
}

function percent(share) {
  return share === null || share === undefined ? UNKNOWN : `${(100 * share).toFixed(share < 0.1 ? 2 : 0)} %`;
}

// What is told to screen readers when something happens elsewhere on the page.
const announced = el("div", {class: "unseen", role: "status", "aria-live": "polite"});
function tell(text) {
  announced.textContent = text;
}

function themeButton() {
  const root = document.documentElement;
  const dark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  return el("button", {
    type: "button", class: "quiet", title: "Light or dark",
    onclick: () => { root.dataset.theme = dark() ? "light" : "dark"; },
  }, "Light / dark");
}

function heading(title, text) {
  return el("header", {class: "page"}, el("div", {}, el("h1", {}, title), el("p", {}, text)), themeButton());
}

// A page is its parts, from top to bottom.
function show(...parts) {
  document.body.append(...parts, announced);
  document.documentElement.dataset.ready = "yes"; // for tests and for those who print
}
