"use strict";
// Sortable tables, and the browser of examples. All text goes in by textContent.

for (const table of document.querySelectorAll("table:has(thead)")) {
  const heads = [...table.querySelectorAll("thead th")];
  const valueOf = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map(row => [row, valueOf(row, i)]);
    const number = text => Number(text.replace(/[,%×]/g, ""));
    const numeric = rows.every(([, text]) => text === "nan" || text === "-" || text !== "" && !Number.isNaN(number(text)));
    const key = numeric ? text => { const n = number(text); return Number.isNaN(n) ? -Infinity : n; } : text => text;
    const compare = (a, b) => a < b ? -1 : a > b ? 1 : 0;
    rows.sort((a, b) => (down ? -1 : 1) * (numeric ? compare(key(a[1]), key(b[1])) : a[1].localeCompare(b[1], undefined, { numeric: true })));
    table.tBodies[0].append(...rows.map(([row]) => row));
  }));
}

const content = JSON.parse(document.getElementById("content").textContent);
const pictures = new Map(content.others.map(other => [other.id, other]));
for (const example of content.examples) pictures.set(example.id, example);
const galleries = new Map(content.galleries.map(gallery => [gallery.component, gallery]));
const byId = new Map(content.examples.map(example => [example.id, example]));
const form = document.getElementById("filter");
const list = document.getElementById("list");
const detail = document.getElementById("detail");
const browser = document.getElementById("browser");
const PAGE = 36;
let shown = PAGE;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children.filter(child => child !== null));
  return element;
}

const fixed = (value, digits = 3) => value === null ? "undefined" : value.toFixed(digits);

function nameOf(component) {
  let group = content.groups[0];
  for (const next of content.groups) if (next.start <= component) group = next;
  const place = component - group.start, [first, step] = group.numbers;
  return group.name.replace("{}", Array.isArray(first) ? first[place] : first + step * place);
}

function pictureOf(of) {
  if (of?.image) {
    const image = make("img", { src: of.image, alt: `example ${of.id}` });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth < 64));
    return image;
  }
  return of?.excerpt ? make("span", { className: "excerpt", textContent: of.excerpt }) : null;
}

const nameOfClass = label => content.classes[label] ?? String(label);

function classesOf(example) {
  if (example.label === null) return "";
  const text = content.classes[example.label] ?? `class ${example.label}`;
  return example.prediction === example.label ? text : `${text}, taken for ${nameOfClass(example.prediction)}`;
}

function isWrong(example) {
  return example.label !== null && example.prediction !== example.label;
}

function chosen() {
  const { text, label, right, order } = Object.fromEntries(new FormData(form));
  const wanted = text.trim().toLowerCase();
  const found = content.examples.filter(example =>
    (!wanted || String(example.id) === wanted || (example.excerpt ?? "").toLowerCase().includes(wanted))
    && (!label || String(example.label) === label)
    && (!right || isWrong(example) === (right === "wrong")));
  const low = value => value ?? -Infinity;
  const by = {
    id: (a, b) => a.id - b.id,
    worst: (a, b) => low(a.correlation) - low(b.correlation),
    best: (a, b) => low(b.correlation) - low(a.correlation),
    margin: (a, b) => low(a.margin) - low(b.margin),
  };
  return found.sort(by[order]);
}

function show() {
  const found = chosen();
  form.elements.count.textContent = `${found.length} of ${content.examples.length}`;
  const cards = found.slice(0, shown).map(example => {
    const card = make("button", { type: "button", className: "example" },
      pictureOf(example), make("span", { textContent: `${example.id}: r ${fixed(example.correlation, 2)}` }),
      make("span", { textContent: classesOf(example), className: isWrong(example) ? "wrong" : "" }));
    card.dataset.id = example.id;
    card.setAttribute("aria-pressed", detail.dataset.id === String(example.id));
    card.addEventListener("click", () => open(example.id));
    return card;
  });
  list.replaceChildren(...cards);
  if (found.length > shown) {
    const more = make("button", { type: "button", className: "more", textContent: `${found.length - shown} more` });
    more.addEventListener("click", () => { shown += PAGE; show(); });
    list.append(more);
  }
}

function scatter(example) {
  const ns = "http://www.w3.org/2000/svg";
  const [width, height, left, bottom] = [230, 200, 34, 30];
  const all = [...example.predicted, ...example.true];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const spread = high - low || 1;
  const x = value => left + (value - low) / spread * (width - left - 8);
  const y = value => height - bottom - (value - low) / spread * (height - bottom - 8);
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `true against predicted ${content.output}`);
  const add = (tag, attributes, text) => {
    const element = document.createElementNS(ns, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    svg.append(element);
  };
  const line = (x1, y1, x2, y2, opacity) => add("line", { x1, y1, x2, y2, stroke: "currentColor", "stroke-opacity": opacity });
  line(left, y(low), width - 8, y(low), .5);
  line(left, y(low), left, 8, .5);
  line(x(low), y(low), x(high), y(high), .35);
  example.predicted.forEach((value, i) => add("circle", { cx: x(value).toFixed(1), cy: y(example.true[i]).toFixed(1), r: 2.2, fill: "var(--blue)", "fill-opacity": .65 }));
  const label = (text, at, up, anchor, more = {}) => add("text", { x: at, y: up, "font-size": 10, fill: "currentColor", "text-anchor": anchor, ...more }, text);
  label(fixed(low, 1), left, height - bottom + 12, "middle");
  label(fixed(high, 1), width - 8, height - bottom + 12, "end");
  label(fixed(high, 1), left - 4, 14, "end");
  label(`predicted ${content.output}`, (left + width) / 2, height - 4, "middle");
  label("true", 10, height / 2, "middle", { transform: `rotate(-90 10 ${height / 2})` });
  return svg;
}

function galleryOf(component, place) {
  const gallery = galleries.get(component);
  const part = (title, pairs) => {
    const figures = pairs.map(([id, weight]) => {
      const of = pictures.get(id) ?? { id };
      const caption = make("figcaption", {}, `${id}: ${weight > 0 ? "+" : ""}${fixed(weight, 3)}`);
      return make("figure", {}, pictureOf(of), caption);
    });
    const box = make("div", { className: "gallery" }, ...figures);
    box.classList.toggle("texts", pairs.some(([id]) => pictures.get(id)?.excerpt && !pictures.get(id)?.image));
    return pairs.length ? [make("p", { className: "note", textContent: title }), box] : [];
  };
  place.replaceChildren(make("h4", { textContent: nameOf(component) }),
    ...part("It raises the output most on", gallery.raised), ...part("It lowers the output most on", gallery.lowered));
}

function open(id) {
  const example = byId.get(id);
  if (!example) return;
  detail.dataset.id = id;
  detail.hidden = false;
  browser.classList.add("open");
  const largest = Math.max(...example.weights.map(([, weight]) => Math.abs(weight)), 1e-30);
  const rows = example.weights.flatMap(([component, weight]) => {
    const bar = make("i", { className: weight < 0 ? "down" : "" });
    bar.style.width = `${Math.abs(weight) / largest * 100}%`;
    let name = make("span", { className: "none", textContent: nameOf(component) });
    if (galleries.has(component)) {
      name = make("button", { type: "button", textContent: nameOf(component) });
      name.addEventListener("click", () => galleryOf(component, place));
    }
    return [name, bar, make("span", { textContent: (weight > 0 ? "+" : "") + fixed(weight, 3) })];
  });
  const place = make("div", { id: "gallery" });
  const facts = [classesOf(example), `${content.output} ${fixed(example.margin)}`, `correlation ${fixed(example.correlation)}`].filter(Boolean).join(" · ");
  detail.replaceChildren(...[
    make("h3", { textContent: `Example ${id}` }), make("p", { className: isWrong(example) ? "wrong" : "", textContent: facts }),
    make("div", { className: "both" }, pictureOf(example), scatter(example)),
    make("p", { className: "note", textContent: `What keeping a component adds to the ${content.output}, the strongest up and down:` }),
    make("div", { className: "weights" }, ...rows), place]);
  for (const card of list.querySelectorAll("button.example")) card.setAttribute("aria-pressed", card.dataset.id === String(id));
  history.replaceState(null, "", `#example-${id}`);
  if (browser.getBoundingClientRect().top < 0 || matchMedia("(max-width: 859px)").matches) detail.scrollIntoView({ block: "start" });
}

const labels = [...new Set(content.examples.map(example => example.label))].filter(label => label !== null).sort((a, b) => a - b);
form.elements.label.append(...labels.map(label => make("option", { value: label, textContent: nameOfClass(label) })));
form.elements.label.parentElement.hidden = form.elements.right.parentElement.hidden = !labels.length;
list.classList.toggle("texts", content.examples.some(example => example.excerpt && !example.image));
form.addEventListener("input", () => { shown = PAGE; show(); });
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
show();
const linked = /^#example-(\d+)$/.exec(location.hash);
if (linked) open(Number(linked[1]));
