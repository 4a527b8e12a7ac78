// What the page knows: components by row (the strongest first), examples by place (rising ids).

const content = JSON.parse(document.getElementById("content").textContent);
const starts = content.groups.map(group => group.start);

function groupOf(id) {
  let low = 0, high = starts.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (starts[middle] <= id) low = middle; else high = middle - 1;
  }
  return content.groups[low];
}

// All of the run by name, once they are asked for.
let named = null;
function idsByName() {
  named ??= new Map(Array.from({ length: content.num_components }, (_, id) => [nameOf(id), id]));
  return named;
}

function nameOf(id) {
  const group = groupOf(id), place = id - group.start, [first, step] = group.numbers;
  return group.name.replace("{}", () => Array.isArray(first) ? first[place] : first + step * place);
}

const C = (packed => ({
  ...packed,
  ...Object.fromEntries(["ids", "mean", "strength", "spread", "errors", "raised", "raised_by", "lowered", "lowered_by",
    "edges", "histogram", "similar", "cosines"].map(name => [name, unpack(packed[name])])),
  by_group: packed.by_group.map(part => part && { at: unpack(part.at), means: unpack(part.means), halves: unpack(part.halves), names: part.names, counts: part.counts }),
}))(content.components);
C.names = Array.from(C.ids, nameOf);
const rowOfId = new Map(Array.from(C.ids, (id, i) => [id, i]));
const rowOfName = new Map(C.names.map((name, i) => [name, i]));
const bins = C.num ? C.histogram.length / C.num : 0, gallery = C.num ? C.raised.length / C.num : 0;
const numSimilar = C.num_compared ? C.similar.length / C.num_compared : 0;

const E = (packed => ({
  ...packed,
  ...Object.fromEntries(["margin", "correlation", "components", "weights", "standard_errors", "base", "whole", "predicted",
    "true", "errors", "sizes", "errors_by_size", "scales", "alone", "alone_outputs", "nearest", "cosines", "targets"].map(name => [name, unpack(packed[name])])),
}))(content.examples);
const placeOf = new Map(E.ids.map((id, i) => [id, i]));
const numNearest = E.ids.length ? E.nearest.length / E.ids.length : 0;

// What a search asks for, as a test of texts in small letters: words in any order, "in quotes" one after the other; of
// words with * or ? a whole text or a word of it must be like them. 3 is in L3H5, and not in L13H5.
function finder(query) {
  const asked = [...query.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map(([word, quoted]) => quoted ?? word);
  const tests = asked.map(word => {
    if (/^\d+$/.test(word)) { const whole = new RegExp(`(^|\\D)${word}(\\D|$)`); return said => whole.test(said); }
    if (!/[*?]/.test(word)) return said => said.includes(word);
    const pattern = new RegExp(`^${word.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".")}$`, "s");
    return said => pattern.test(said) || said.split(/\s+/).some(part => pattern.test(part));
  });
  return texts => tests.every(test => texts.some(test));
}

const classWord = label => content.classes[label] ?? `class ${label}`;
const isWrong = i => E.label[i] !== null && E.prediction[i] !== null && E.label[i] !== E.prediction[i];

function classText(label, prediction) {
  if (label === null) return "";
  return prediction === null || prediction === label ? classWord(label) : `${classWord(label)}, taken for ${content.classes[prediction] ?? prediction}`;
}
function classesOf(id) {
  const i = placeOf.get(id);
  if (i !== undefined) return classText(E.label[i], E.prediction[i]);
  const other = content.others[id];
  return other ? classText(other[0], other[1]) : "";
}

// A group as it is spoken of where its grouping is not named.
const groupWord = (g, name) => /^[\d.-]+$/.test(name) ? `${content.groupings[g].name} ${name}` : name;

// Ids and weights of an example that the page holds, the strongest first; those below its step are 0.
function weightsOf(i) {
  const values = row(E.weights, i, E.num_weights);
  const ids = E.components ? row(E.components, i, E.num_weights) : values.map((_, id) => id);
  const errors = E.standard_errors ? row(E.standard_errors, i, E.num_weights) : null;
  const found = ids.map((id, k) => ({ id, weight: values[k], error: errors ? errors[k] : null }));
  return found.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight) || a.id - b.id);
}

const componentHash = name => `#component-${encodeURIComponent(name)}`;
function componentLink(id, properties = {}) {
  const name = nameOf(id);
  if (rowOfId.has(id)) return make("a", { href: componentHash(name), textContent: name, ...properties });
  return make("span", { textContent: name, title: `not among the ${plural(C.num, "strongest component")} that have a page` });
}

function pictureOf(id) {
  if (content.images[id]) {
    const image = make("img", { src: content.images[id], alt: `example ${id}` });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth < 64));
    return image;
  }
  const excerpt = placeOf.has(id) ? E.excerpts[placeOf.get(id)] : content.others[id]?.[2];
  return excerpt ? make("span", { className: "excerpt", textContent: excerpt }) : null;
}

// A card of an example: a link where it has a page.
function card(id, ...lines) {
  const parts = [pictureOf(id), make("span", { className: "id", textContent: `example ${id}` }), ...lines];
  return placeOf.has(id) ? make("a", { className: "card", href: `#example-${id}` }, ...parts)
    : make("div", { className: "card", title: "This example has no page here." }, ...parts);
}
const isText = E.excerpts.some(excerpt => excerpt) && !Object.keys(content.images).length;
const cards = (...of) => make("div", { className: isText ? "cards texts" : content.num_images ? "cards" : "cards numbers" }, ...of);
