// The table of components, and the page of each.

const rows = Array.from({ length: C.num }, (_, i) => i);
const layerOf = i => String(groupOf(C.ids[i]).layer);
const halfOfMean = i => 1.96 * C.spread[i] / Math.sqrt(content.num_examples);
const manyGroups = part => part && part.at !== null;

// [name, mean, half of its 95% interval, examples] of the groups of a grouping: all, or of many the extreme ones.
function meansOf(i, grouping) {
  const part = C.by_group[grouping];
  if (!part) return [];
  const width = part.means.length / C.num, means = row(part.means, i, width), halves = row(part.halves, i, width), { values, counts } = content.groupings[grouping];
  if (!manyGroups(part)) return means.map((mean, g) => [values[g], mean, halves[g], counts[g]]);
  const found = new Map(row(part.at, i, width).map((group, k) => [group, k]));
  return [...found].map(([group, k]) => [part.names[group], means[k], halves[k], part.counts[group]]);
}

function componentTable() {
  const form = document.getElementById("component-filter"), place = document.getElementById("component-table");
  const { text: search, kind, layer, by } = form.elements;
  const options = values => [...new Set(values)].map(value => make("option", { value, textContent: value }));
  kind.append(...options(rows.map(i => groupOf(C.ids[i]).kind)));
  layer.append(...options(rows.map(layerOf)).sort((a, b) => a.value.localeCompare(b.value, undefined, { numeric: true })));
  kind.parentElement.hidden = kind.options.length < 3;
  layer.parentElement.hidden = layer.options.length < 3;
  by.append(...content.groupings.map((grouping, g) => C.by_group[g] ? make("option", { value: g, textContent: grouping.name }) : null).filter(Boolean));
  by.parentElement.hidden = by.options.length < 2;
  search.placeholder = C.num ? `e.g. ${C.names[0].replace(/\[?\d+\]?$/, "*")}` : "";
  const texts = rows.map(i => [C.names[i], groupOf(C.ids[i]).kind, layerOf(i)].map(said => said.toLowerCase()));
  const largest = Math.max(...C.mean.map(Math.abs), 1e-30);
  let box;
  function build() {
    const g = by.value === "" ? null : Number(by.value);
    const columns = [
      { name: "rank", value: i => i + 1, cell: i => make("td", { className: "n", textContent: (i + 1).toLocaleString("en") }), title: "by the mean size of the effect" },
      { name: "component", text: true, value: i => C.names[i], cell: i => make("td", {}, componentLink(C.ids[i])) },
      { name: "mean effect", value: i => C.mean[i], cell: i => barCell(C.mean[i], largest), title: `how much higher the ${content.output} is with the component kept, mean over all examples` },
      { name: "± 95%", value: halfOfMean, title: "half of the 95% interval of the mean, over examples" },
      { name: "mean |effect|", value: i => C.strength[i], title: "mean over all examples of the effect without its sign" },
      { name: "spread", value: i => C.spread[i], title: "standard deviation over examples" },
    ];
    if (C.errors) columns.push({ name: "error of one", value: i => C.errors[i], title: "standard error of the effect on one example, root mean square: how well the masks determine it" });
    if (g !== null && !manyGroups(C.by_group[g])) {
      content.groupings[g].values.forEach((name, k) => columns.push({ name: groupWord(g, name), value: i => meansOf(i, g)[k][1], cell: i => {
        const mean = meansOf(i, g)[k][1], cell = make("td", { className: "n", textContent: signed(mean) });
        if (isNumber(mean)) cell.style.background = `color-mix(in srgb, var(--${sideOf(mean)}) ${Math.min(70, Math.abs(mean) / (3 * C.strength[0]) * 70).toFixed(0)}%, transparent)`;
        return cell;
      }, title: `mean effect on ${content.groupings[g].name} ${name}` }));
    } else if (g !== null) {
      for (const [name, pick] of [["highest on", Math.max], ["lowest on", Math.min]]) {
        const best = i => { const found = meansOf(i, g), top = pick(...found.map(([, mean]) => mean)); return found.find(([, mean]) => mean === top) ?? ["", NaN]; };
        columns.push({ name: `${name} (${content.groupings[g].name})`, text: true, value: i => `${best(i)[0]} ${signed(best(i)[1])}` });
      }
    }
    columns.push({ name: "layer", text: true, value: layerOf });
    if (!kind.parentElement.hidden) columns.push({ name: "kind", text: true, value: i => groupOf(C.ids[i]).kind });
    box = tableOf("components", columns, wanted(), { sort: 4, page: 20 });
    place.replaceChildren(box);
  }
  function wanted() {
    const isFound = finder(search.value);
    const those = rows.filter(i => isFound(texts[i]) && (!kind.value || groupOf(C.ids[i]).kind === kind.value) && (!layer.value || layerOf(i) === layer.value));
    form.elements.count.textContent = those.length ? `${those.length.toLocaleString("en")} of ${C.num.toLocaleString("en")}` : `none of ${C.num.toLocaleString("en")} is like that`;
    return those;
  }
  const again = event => event.target === by ? build() : box.keep(wanted());
  form.addEventListener("input", again);
  form.addEventListener("change", event => { if (event.target.tagName === "SELECT") again(event); });
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  build();
}

function galleryOf(i, ids, by) {
  const found = row(ids, i, gallery).map((id, k) => [id, row(by, i, gallery)[k]]).filter(([, weight]) => weight !== 0);
  if (!found.length) return make("p", { className: "note", textContent: "No example." });
  return cards(...found.map(([id, weight]) => card(id, make("span", { className: sideOf(weight), textContent: signed(weight) }), make("span", { textContent: classesOf(id) }))));
}

function groupBars(i, g) {
  const grouping = content.groupings[g], found = meansOf(i, g).filter(([, mean]) => isNumber(mean)).sort((a, b) => b[1] - a[1]);
  const largest = Math.max(...found.map(([, mean]) => Math.abs(mean)), 1e-30);
  const head = make("thead", {}, make("tr", {}, ...[grouping.name, "mean effect", "± 95%", "examples"].map((name, k) => make("th", { scope: "col", className: k ? "n" : "", textContent: name }))));
  const table = make("table", { data: { name: `${C.names[i]} by ${grouping.name}` } }, head, make("tbody", {}, ...found.map(([name, mean, half, count]) => make("tr", {}, make("th", { scope: "row", textContent: name }), barCell(mean, largest),
    make("td", { className: "n", textContent: text(half) }), make("td", { className: "n", textContent: isNumber(count) ? count.toLocaleString("en") : "–" })))));
  const csv = csvButton(`${C.names[i]} by ${grouping.name}`, () => [[grouping.name, "mean effect", "± 95%", "examples"], ...found]);
  return make("div", {}, make("h3", { textContent: `By ${grouping.name}` }),
    manyGroups(C.by_group[g]) ? make("p", { className: "note", textContent: `The extreme ones, of ${plural(grouping.counts.length || E.ids.length, "group")}.` }) : null,
    scroller(table), make("div", { className: "tools" }, csv));
}

function similarTo(i) {
  if (i >= C.num_compared || !numSimilar) return null;
  const found = row(C.similar, i, numSimilar).map((other, k) => [other, row(C.cosines, i, numSimilar)[k]]);
  const table = make("table", { data: { name: `similar to ${C.names[i]}` } }, make("thead", {}, make("tr", {}, ...["component", "cosine", "mean effect"].map((name, k) => make("th", { scope: "col", className: k ? "n" : "", textContent: name })))),
    make("tbody", {}, ...found.map(([other, cosine]) => make("tr", {}, make("td", {}, componentLink(C.ids[other])), barCell(cosine, 1), make("td", { className: "n", textContent: signed(C.mean[other]) })))));
  const csv = csvButton(`similar-to-${C.names[i]}`, () => [["component", "cosine", "mean effect"], ...found.map(([other, cosine]) => [C.names[other], cosine, C.mean[other]])]);
  const note = `Cosine of the effects on all examples, among the ${plural(C.num_compared, "strongest component")}: near 1, both matter for the same examples in the same direction; near −1, in opposite ones. Both are alike: the order is by the cosine without its sign.`;
  return make("section", {}, make("h2", { textContent: "Most similar components" }), make("p", { className: "note", textContent: note }), scroller(table), make("div", { className: "tools" }, csv));
}

const facts = pairs => make("dl", { className: "facts" }, ...pairs.filter(Boolean).map(([name, ...value]) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value))));
const step = (href, content) => href ? make("a", { href, textContent: content }) : make("span", { className: "note", textContent: content });

// The names of shown components that share most pairs of letters with a text.
function nearNames(asked) {
  const pairs = said => { const small = said.toLowerCase(); return new Set(Array.from(small, (_, k) => small.slice(k, k + 2)).filter(pair => pair.length === 2)); };
  const own = pairs(asked), share = name => { const those = pairs(name); return 2 * [...those].filter(pair => own.has(pair)).length / (own.size + those.size || 1); };
  return C.names.map(name => [name, share(name)]).filter(([, near]) => near > .3).sort((a, b) => b[1] - a[1]).slice(0, 5).map(([name]) => name);
}

function componentPage(asked) {
  const name = !idsByName().has(asked) && /^\d+$/.test(asked) && Number(asked) < content.num_components ? nameOf(Number(asked)) : asked; // an id
  const i = rowOfName.get(name);
  if (i === undefined) {
    const isThere = idsByName().has(name), near = isThere ? [] : nearNames(name);
    const why = isThere ? `There is no page of this component: the page holds the ${plural(C.num, "strongest component")} of ${content.num_components.toLocaleString("en")}.` : "The run has no component of this name.";
    return [make("h1", { textContent: name }), make("p", { textContent: why }),
      near.length ? make("p", { className: "names" }, "Near it: ", ...near.map(other => componentLink(idsByName().get(other), { className: "name" })).flatMap((link, k) => k ? [", ", link] : [link])) : null,
      make("p", {}, make("a", { href: "#components", textContent: "All components" }))];
  }
  const group = groupOf(C.ids[i]), mean = C.mean[i];
  const half = isNumber(C.spread[i]) ? halfOfMean(i) : NaN, by = text(Math.abs(mean)), over = `in the mean over ${plural(content.num_examples, "example")}`;
  const does = half >= Math.abs(mean) ? `What keeping it does to the ${content.output} cannot be told from 0 ${over}: ${signed(mean)} ± ${text(half)}.`
    : `Keeping it ${mean < 0 ? "lowers" : "raises"} the ${content.output} by ${by}${isNumber(half) ? ` ± ${text(half)}` : ""} ${over}.`;
  return [
    make("nav", { className: "steps" }, make("a", { href: "#components", textContent: "All components" }), step(i ? componentHash(C.names[i - 1]) : "", "← stronger"), step(i + 1 < C.num ? componentHash(C.names[i + 1]) : "", "weaker →")),
    make("h1", { textContent: name }), make("p", { className: "lead", textContent: does }),
    facts([["rank", `${i + 1} of ${content.num_components.toLocaleString("en")}`], ["kind", group.kind], ["layer", String(group.layer)],
      ["mean effect", signed(mean)], C.num && isNumber(C.spread[i]) ? ["± 95% over examples", text(halfOfMean(i))] : null, ["mean |effect|", text(C.strength[i])],
      ["spread over examples", text(C.spread[i])], C.errors ? ["standard error of one effect", text(C.errors[i])] : null]),
    looksOf(C.ids[i]),
    make("section", {}, make("h2", { textContent: "Examples that it helps most" }), make("p", { className: "note", textContent: `Keeping it raises their ${content.output} most.` }), galleryOf(i, C.raised, C.raised_by)),
    make("section", {}, make("h2", { textContent: "Examples that it hurts most" }), make("p", { className: "note", textContent: `Keeping it lowers their ${content.output} most.` }), galleryOf(i, C.lowered, C.lowered_by)),
    make("h2", { textContent: "Effects" }),
    make("section", { className: "columns" },
      make("div", {}, make("h3", { textContent: "On all examples" }), figureOf(`histogram of ${name}`, histogram(name, row(C.edges, i, 2), row(C.histogram, i, bins)), "Examples by how much higher their output is with it kept."),
        csvButton(`histogram-of-${name}`, () => { const [low, high] = row(C.edges, i, 2); return [["from", "to", "examples"], ...row(C.histogram, i, bins).map((count, k) => [low + k / bins * (high - low), low + (k + 1) / bins * (high - low), count])]; })),
      ...content.groupings.map((_, g) => C.by_group[g] ? groupBars(i, g) : null)),
    similarTo(i),
  ];
}
