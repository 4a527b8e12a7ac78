// What a component looks at: the kernel of a filter, activations on examples, attention.

// Values as squares, one colour, as strong as the value; negative ones in another.
function cells(values, height, width, size, { color = "var(--active)", below = "var(--neutral)", title = "", largest = Math.max(...values.map(Math.abs), 1e-30) } = {}) {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "cells", role: "img", "aria-label": title, preserveAspectRatio: "none" });
  if (size) { svg.style.width = `${width * size}px`; svg.style.height = `${height * size}px`; }
  values.forEach((value, k) => {
    const share = Math.abs(value) / largest;
    if (share < .01) return;
    svg.append(titled(draw("rect", { x: k % width, y: Math.floor(k / width), width: 1.02, height: 1.02, fill: value < 0 ? below : color, "fill-opacity": share.toFixed(2) }), text(value)));
  });
  return svg;
}

function kernelOf(kernel) {
  const [channels, height, width] = kernel.shape, values = Array.from(unpack(kernel)), size = Math.max(6, Math.min(22, Math.floor(110 / width)));
  const largest = Math.max(...values.map(Math.abs), 1e-30), names = channels === 3 ? ["red", "green", "blue"] : null;
  return Array.from({ length: Math.min(channels, 8) }, (_, c) => {
    const part = cells(values.slice(c * height * width, (c + 1) * height * width), height, width, size, { title: `kernel, channel ${c}`, largest });
    part.style.background = "var(--card)";
    return make("figure", {}, part, make("figcaption", { title: "in colour above 0, grey below", textContent: channels === 1 ? "kernel" : `kernel, ${names ? names[c] : `channel ${c}`}` }));
  });
}

// Tokens one after the other; where they have no spaces of their own, as words do, they are set apart.
function tokenBox(spans) {
  const isApart = spans.filter(span => /\s/.test(span.textContent ?? "")).length < spans.length / 10;
  return make("div", { className: isApart ? "tokens apart" : "tokens" }, ...spans);
}

// The positions of a text by their strengths: over its tokens where the run has them.
function stripOf(response, values) {
  const largest = Math.max(...values.map(Math.abs), 1e-30), tokens = content.tokens[response.id];
  const spans = values.map((value, k) => {
    const place = response.first + k;
    const part = make("span", { textContent: tokens?.[place] ?? String(place), title: `position ${place}: ${text(value)}` });
    part.style.background = `color-mix(in srgb, ${value < 0 ? "var(--neutral)" : "var(--active)"} ${(55 * Math.abs(value) / largest).toFixed(0)}%, transparent)`;
    return part;
  });
  return tokenBox([response.first ? "… " : "", ...spans]);
}

function responseOf(response) {
  const shape = response.activation.shape, values = Array.from(unpack(response.activation)), parts = [];
  const picture = content.images[response.id] ? pictureOf(response.id) : null;
  if (shape.length === 2) {
    const map = cells(values.map(value => Math.max(value, 0)), shape[0], shape[1], picture ? 0 : 128 / Math.max(...shape), { title: `activation on example ${response.id}` });
    parts.push(picture ? make("span", { className: "over" }, picture, map) : map);
  } else {
    if (shape.length === 1) parts.push(stripOf(response, values));
    const shown = shape.length === 0 || !content.tokens[response.id] ? pictureOf(response.id) : null;
    if (shown) parts.push(shown.tagName === "IMG" ? make("span", { className: "portrait" }, shown) : shape.length === 1 ? null : make("div", { className: "tokens" }, shown));
  }
  if (response.pattern) {
    const [queries, keys] = response.pattern.shape;
    const map = cells(Array.from(unpack(response.pattern)), queries, keys, Math.max(4, Math.min(12, 160 / keys)), { title: "attention" });
    map.style.background = "var(--card)";
    parts.push(make("div", {}, map, make("span", { className: "note", textContent: "attention: a row per query, a column per key" })));
  }
  if (!pictureOf(response.id) && !content.tokens[response.id]) parts.push(valuesOf(response.id));
  const of = placeOf.has(response.id) ? make("a", { href: `#example-${response.id}`, textContent: `example ${response.id}` }) : `example ${response.id}`;
  return make("figure", {}, ...parts.filter(Boolean), make("figcaption", {}, of, `: ${text(response.strength)}`, classesOf(response.id) ? `, ${classesOf(response.id)}` : ""));
}

// What is shown of a component, by its kind and by what its activation is.
function looksInWords(id, looks) {
  const kind = groupOf(id).kind, shape = looks.examples[0]?.activation.shape ?? [], strongest = "The examples on which its activation is greatest", after = "What it does to the output stands below.";
  if (!looks.examples.length) return `Its kernel. ${after}`;
  if (/head|key.?value/.test(kind)) return `The examples on which the norm of the head's output is greatest, at any token, and, in colour, that norm by token${looks.examples.some(({ pattern }) => pattern) ? "; below it, what each token attends to" : ""}. ${after}`;
  if (/block|layer|mlp|attention/.test(kind)) return `The examples on which the norm of its output is greatest, and, in colour, where in them it is large. ${after}`;
  if (/expert/.test(kind)) return `The examples with tokens that are routed to it most, and, in colour, the weight of the routing. ${after}`;
  return shape.length ? `${strongest}, and, in colour, where in them it is above 0. That is what it responds to. ${after}` : `${strongest}, with that activation. That is what it responds to. ${after}`;
}

// The columns of an example that has neither a picture nor a text, as of a table.
function valuesOf(id) {
  const i = placeOf.get(id), said = i === undefined ? [] : Object.entries(E.columns).slice(0, 8).map(([name, values]) => `${name} ${values[i]}`);
  return said.length ? make("div", { className: "note", textContent: said.join(", ") }) : null;
}

function looksOf(id) {
  const looks = content.looks[id];
  if (!looks || !looks.kernel && !looks.examples.length) return null;
  return make("section", {}, make("h2", { textContent: "What it looks at" }),
    make("p", { className: "note", textContent: looksInWords(id, looks) }),
    make("div", { className: "looks" }, ...(looks.kernel ? kernelOf(looks.kernel) : []), ...looks.examples.map(responseOf)));
}
