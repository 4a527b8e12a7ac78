// Layers x numbers, components x groups, parameters x groups, and the model's errors.

function mapOf(name, map, caption, csv) {
  const box = figureOf(name, map.svg, caption + map.says);
  box.lastElementChild.append(" ", csvButton(name, csv));
  return box;
}

function gridMap(grid) {
  const mean = unpack(grid.mean), at = (r, c) => r * grid.width + c, columns = Array.from({ length: grid.width }, (_, c) => String(c));
  const map = heatmap({ rows: grid.rows, columns, signed: true, numbered: true, title: `mean effect by layer and ${grid.kind}`, cell: grid.width > 64 ? [10, 14] : grid.width > 24 ? [14, 16] : [22, 18],
    value: (r, c) => mean[at(r, c)], says: (r, c) => `${nameOf(grid.ids[at(r, c)])}: ${signed(mean[at(r, c)])}`,
    href: (r, c) => rowOfId.has(grid.ids[at(r, c)]) ? componentHash(nameOf(grid.ids[at(r, c)])) : null });
  const all = () => [["component", "row", "column", "mean effect"], ...grid.ids.map((id, k) => [id, k]).filter(([id]) => id >= 0).map(([id, k]) => [nameOf(id), grid.rows[Math.floor(k / grid.width)], k % grid.width, mean[k]])];
  return make("div", {}, make("h3", { textContent: `Layers and ${grid.kind}s` }), mapOf(`layers by ${grid.kind}`, map, `Mean effect of every ${grid.kind}; a click opens its page. ${scale(map.largest)}`, all));
}

function clusterMap(g) {
  const part = content.maps.clusters[g], grouping = content.groupings[g];
  if (!part || !part.rows.length) return null;
  const values = unpack(part.values), width = part.groups.length, names = part.rows.map(i => C.names[i]);
  const map = heatmap({ rows: names, columns: part.groups, signed: true, title: `mean effect by component and ${grouping.name}`, cell: [30, 16],
    value: (r, c) => values[r * width + c], says: (r, c) => `${names[r]}, ${part.groups[c]}: ${signed(values[r * width + c])}`, href: r => componentHash(names[r]) });
  const some = width < part.num_groups ? ` The ${width} of ${part.num_groups.toLocaleString("en")} groups that differ most.` : "";
  return make("div", {}, make("h3", { textContent: `Components and ${grouping.name}` }),
    mapOf(`components by ${grouping.name}`, map, `Mean effect of the ${part.rows.length} strongest components; what is alike stands together.${some} ${scale(map.largest)}`,
      () => [["component", ...part.groups], ...names.map((name, r) => [name, ...row(values, r, width)])]));
}

function parameterMap(g) {
  const part = content.maps.parameters.groupings[g], grouping = content.groupings[g], names = content.maps.parameters.names;
  const shares = unpack(part.shares), width = part.groups.length;
  const map = heatmap({ rows: names, columns: part.groups, title: `share of the weight by parameter and ${grouping.name}`, cell: [30, names.length > 40 ? 13 : 16],
    value: (r, c) => shares[r * width + c], says: (r, c) => `${names[r]}, ${part.groups[c]}: ${percent(shares[r * width + c])}` });
  return make("div", {}, make("h3", { textContent: `Parameters and ${grouping.name}` }),
    mapOf(`parameters by ${grouping.name}`, map, `Share of the absolute weight; the fullest colour is ${percent(map.largest)}.`, () => [["parameter", ...part.groups], ...names.map((name, r) => [name, ...row(shares, r, width)])]));
}

function confusionMap() {
  const found = content.maps.confusion, place = document.getElementById("confusion");
  if (!found) { place.closest("section").hidden = true; return; }
  const note = make("p", { textContent: `The unablated model is wrong on ${found.wrong.toLocaleString("en")} of ${plural(found.num, "example")}. A click lists those that the page shows.` });
  const hash = (label, taken) => `#examples:label=${label}&taken=${taken}`;
  if (!found.wrong) {
    place.append(make("p", { textContent: `The unablated model is right on all ${plural(found.num, "example")}.` }));
    return;
  }
  if (found.counts) {
    const map = heatmap({ rows: found.names, columns: found.names, title: "examples by class and prediction", cell: [34, 22], count: true,
      value: (r, c) => r === c ? NaN : found.counts[r][c], says: (r, c) => `${found.names[r]} taken for ${found.names[c]}: ${found.counts[r][c]}`,
      href: (r, c) => found.counts[r][c] ? hash(found.labels[r], found.labels[c]) : null });
    place.append(note, mapOf("errors of the model", map, "Rows: the class; columns: what the model says. The diagonal, what is right, is left out.",
      () => [["class", ...found.names], ...found.names.map((name, r) => [name, ...found.counts[r]])]));
    return;
  }
  const columns = [{ name: "class", text: true, value: ([label]) => classWord(label) }, { name: "taken for", text: true, value: ([, taken]) => classWord(taken) },
    { name: "examples", value: ([, , count]) => count, cell: ([label, taken, count]) => make("td", { className: "n" }, make("a", { href: hash(label, taken), textContent: count })) }];
  place.append(note, tableOf("errors of the model", columns, found.pairs, { sort: 2 }));
}

function showMaps() {
  document.getElementById("grids").append(...content.maps.grids.map(gridMap));
  const place = document.getElementById("by-group"), choice = document.querySelector("#map-filter select");
  const names = content.groupings.map(grouping => grouping.name);
  choice.append(...names.map((name, g) => make("option", { value: g, textContent: name })));
  choice.form.hidden = names.length < 2;
  const show = () => place.replaceChildren(...[clusterMap(Number(choice.value)), parameterMap(Number(choice.value))].filter(Boolean));
  if (names.length) show();
  for (const event of ["input", "change"]) choice.addEventListener(event, show);
  confusionMap();
}
