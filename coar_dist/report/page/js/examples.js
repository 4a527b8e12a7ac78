// The list of examples, and the page of each.

const filter = document.getElementById("filter"), PAGE = 36;
let numShown = PAGE;

function fillFilter() {
  const { label, taken, order } = filter.elements;
  const options = (values, named) => values.map(value => make("option", { value, textContent: named(value) }));
  const known = values => [...new Set(values)].filter(value => value !== null).sort((a, b) => a - b);
  label.append(...options(known(E.label), classWord));
  taken.append(...options(known(E.prediction), classWord));
  label.parentElement.hidden = taken.parentElement.hidden = filter.elements.right.parentElement.hidden = label.options.length < 2;
  content.groupings.forEach((grouping, g) => {
    if (["class", "right or wrong"].includes(grouping.name)) return;
    const choice = make("select", { name: `group${g}` }, make("option", { value: "", textContent: "all" }), ...grouping.values.map((value, k) => make("option", { value: k, textContent: value })));
    order.parentElement.before(make("label", {}, `${grouping.name} `, choice));
  });
  filter.addEventListener("input", () => { numShown = PAGE; showExamples(); });
  filter.addEventListener("submit", event => event.preventDefault());
  filter.hidden = false;
}

function chosenExamples() {
  const asked = Object.fromEntries(new FormData(filter)), found = asked.text.trim().toLowerCase();
  const places = E.ids.map((_, i) => i).filter(i =>
    (!found || String(E.ids[i]) === found || (E.excerpts[i] ?? "").toLowerCase().includes(found))
    && (!asked.label || String(E.label[i]) === asked.label) && (!asked.taken || String(E.prediction[i]) === asked.taken)
    && (!asked.right || E.label[i] !== null && isWrong(i) === (asked.right === "wrong"))
    && content.groupings.every((_, g) => !asked[`group${g}`] || String(E.codes[g][i]) === asked[`group${g}`]));
  const low = value => isNumber(value) ? value : -Infinity;
  const by = { id: () => 0, worst: (a, b) => low(E.correlation[a]) - low(E.correlation[b]), best: (a, b) => low(E.correlation[b]) - low(E.correlation[a]),
    margin: (a, b) => low(E.margin[a]) - low(E.margin[b]) };
  return places.sort((a, b) => by[asked.order](a, b) || a - b);
}

// The columns that group examples; the others stand on an example's page.
function columnsOf(i) {
  const names = content.groupings.map(grouping => grouping.name);
  return Object.entries(E.columns).filter(([name]) => names.includes(name)).map(([name, values]) => `${name} ${values[i]}`).join(", ");
}

function showExamples() {
  const found = chosenExamples(), place = document.getElementById("list");
  filter.elements.count.textContent = `${found.length} of ${E.ids.length}`;
  const pictures = Object.keys(content.images).length, few = `Pictures of ${pictures.toLocaleString("en")} of ${plural(content.num_images, "example")}, as many as the page has room for.`;
  place.replaceChildren(pictures < content.num_images ? make("p", { className: "note", textContent: few }) : "", cards(...found.slice(0, numShown).map(i => card(E.ids[i], make("span", { textContent: `r ${correlation(E.correlation[i])}` }),
    make("span", { className: isWrong(i) ? "wrong" : "", textContent: classText(E.label[i], E.prediction[i]) }), make("span", { className: "note", textContent: columnsOf(i) })))),
    make("div", { className: "tools" },
      found.length > numShown ? button(`${found.length - numShown} more`, () => { numShown += 4 * PAGE; showExamples(); }, { className: "more" }) : null,
      csvButton("examples", () => [["example", "class", "prediction", content.output, "predicted", "correlation", ...Object.keys(E.columns)],
        ...chosenExamples().map(i => [E.ids[i], E.label[i], E.prediction[i], E.margin[i], E.whole[i], E.correlation[i], ...Object.values(E.columns).map(values => values[i])])])));
}

// "examples:label=3&taken=5" of the address.
function filterBy(asked) {
  filter.reset();
  for (const [name, value] of new URLSearchParams(asked)) if (filter.elements[name]) filter.elements[name].value = value;
  numShown = PAGE;
  showExamples();
}

const off = new Set(); // components that are ticked off, for all examples

// From everything ablated to everything kept: the ten strongest, and all others as one bar.
function waterfall(i, onTick) {
  const strongest = weightsOf(i).slice(0, 10), base = E.base[i], whole = E.whole[i], margin = E.margin[i];
  const others = whole - base - strongest.reduce((sum, { weight }) => sum + weight, 0);
  const numOthers = content.num_components - strongest.length;
  let at = base;
  const lines = [{ name: "everything ablated", end: base, from: base, mark: true }];
  for (const { id, weight, error } of strongest) lines.push({ id, from: at, end: at += weight, weight, error });
  if (numOthers > 0) lines.push({ name: `${numOthers.toLocaleString("en")} others`, from: at, end: whole, weight: others });
  lines.push({ name: "everything kept, predicted", from: whole, end: whole, mark: true });
  if (isNumber(margin)) lines.push({ name: "everything kept, measured", from: margin, end: margin, mark: true, measured: true });
  const ends = lines.flatMap(({ from, end, error }) => [from, end, ...(error ? [end - error, end + error] : [])]);
  const low = Math.min(...ends, 0), high = Math.max(...ends, 0), spread = high - low || 1, x = value => 100 * (value - low) / spread;
  const zero = () => { const line = make("i", { className: "zero" }); line.style.left = `${x(0)}%`; return line; };
  const parts = lines.map(line => {
    const track = make("span", { className: "track" }, zero());
    const part = make("i", { className: line.mark ? line.measured ? "mark measured" : "mark" : sideOf(line.weight) });
    part.style.left = `${x(Math.min(line.from, line.end))}%`;
    if (!line.mark) part.style.width = `${Math.abs(line.end - line.from) / spread * 100}%`;
    track.append(part);
    if (isNumber(line.error)) {
      const error = make("i", { className: "error", title: `standard error ${text(line.error)}` });
      error.style.left = `${x(line.end - line.error)}%`;
      error.style.width = `${2 * line.error / spread * 100}%`;
      track.append(error);
    }
    const tick = line.id === undefined ? make("span") : tickOf(line.id, onTick);
    const value = line.mark ? text(line.end) : signed(line.weight) + (isNumber(line.error) ? ` ±${text(line.error)}` : "");
    return make("div", {}, tick, line.id === undefined ? make("span", { className: "name", textContent: line.name }) : componentLink(line.id, { className: "name" }), track, make("span", { className: "n", textContent: value }));
  });
  return make("div", { className: "waterfall" }, ...parts);
}

function tickOf(id, onTick) {
  const tick = make("input", { type: "checkbox", checked: !off.has(id), title: "kept; untick to ablate it", data: { component: id } });
  tick.setAttribute("aria-label", `keep ${nameOf(id)}`);
  tick.addEventListener("change", () => { if (tick.checked) off.delete(id); else off.add(id); onTick(); });
  return tick;
}

// The prediction without the components that are off, with its measured error.
function whatIf(i) {
  const known = new Map(weightsOf(i).map(({ id, weight }) => [id, weight]));
  const ablated = [...off].filter(id => known.has(id) || !E.components), unknown = off.size - ablated.length;
  const value = E.whole[i] - ablated.reduce((sum, id) => sum + (known.get(id) ?? 0), 0);
  const errors = row(E.errors, i, content.fractions.length), share = ablated.length / content.num_components;
  let nearest = 0;
  content.fractions.forEach((fraction, k) => { if (Math.abs(fraction - share) < Math.abs(content.fractions[nearest] - share)) nearest = k; });
  return { ablated, unknown, value, error: errors[nearest], fraction: content.fractions[nearest] };
}

function whatIfBox(i) {
  const result = make("div", { className: "result", role: "status" }), chips = make("p", { className: "chips" });
  const names = make("datalist", { id: "kept-components" }, ...weightsOf(i).slice(0, 2000).map(({ id }) => make("option", { value: nameOf(id) })));
  const idOfName = new Map(weightsOf(i).map(({ id }) => [nameOf(id), id]));
  const search = make("input", { type: "search", placeholder: "component", autocomplete: "off", "aria-label": "component to ablate" });
  search.setAttribute("list", "kept-components");
  search.addEventListener("input", () => {
    const id = idOfName.get(search.value.trim());
    if (id !== undefined) { off.add(id); search.value = ""; update(); }
  });
  const clear = button("Keep all again", () => { off.clear(); update(); });
  function update() {
    const { ablated, unknown, value, error, fraction } = whatIf(i), whole = E.whole[i];
    for (const tick of document.querySelectorAll(".waterfall input")) tick.checked = !off.has(Number(tick.dataset.component));
    chips.replaceChildren(...ablated.map(id => button(`${nameOf(id)} ×`, () => { off.delete(id); update(); }, { title: "keep it again" })));
    clear.hidden = !off.size;
    const elsewhere = unknown ? `${plural(unknown, "component")} ticked off on other examples: the page holds no weight of this example for ${unknown === 1 ? "it" : "them"}, so it is small.` : "";
    if (!ablated.length) { result.replaceChildren(make("p", { className: "note", textContent: elsewhere || "Nothing is ticked off yet." })); return; }
    const [said, by] = withError(value, error), [kept] = withError(whole, error);
    const far = ablated.length > content.most_ablated, around = far ? 0 : error; // no error was measured so far away
    const low = Math.min(0, whole, value - around), high = Math.max(0, whole, value + around), spread = high - low || 1, x = of => `${100 * (of - low) / spread}%`;
    const place = (className, from, to) => { const part = make("i", { className }); part.style.left = x(Math.min(from, to)); if (from !== to) part.style.width = `${Math.abs(to - from) / spread * 100}%`; return part; };
    result.replaceChildren(
      make("p", { className: "lead", textContent: `Prediction: ${content.output} ${said}${far ? ", with an unknown error" : ` ± ${by}`}, ${signed(value - whole)} from ${kept} with everything kept.` }),
      make("div", { className: "track wide" }, place("zero", 0, 0), ...(far ? [] : [place("band", value - error, value + error)]), place(sideOf(value - whole), whole, value), place("mark", value, value)),
      make("p", { className: "note", textContent: `Not measured. ${far ? `No held-out mask ablates more than ${plural(content.most_ablated, "component")}, so how far off this is was not measured.` : `± is the root mean square error of such predictions of this example, measured on ${plural(E.num_masks, "held-out mask")} that ablate ${text(100 * fraction)}% of the components.`} ${elsewhere}` }));
  }
  const held = E.components ? `The page holds the ${E.num_weights} strongest of ${content.num_components.toLocaleString("en")} components of each example.` : "";
  const box = make("section", { className: "whatif" }, make("h2", { textContent: "What if" }),
    make("p", {}, `Untick components above, or add one: `, search, names, " ", clear), chips, result, held ? make("p", { className: "note", textContent: held }) : null);
  return { box, update };
}

// A text as the model reads it.
function tokensOf(id) {
  const tokens = content.tokens[id];
  return tokens ? make("details", {}, make("summary", { textContent: plural(tokens.length, "token") }),
    make("div", { className: "tokens" }, ...tokens.map((token, k) => make("span", { textContent: token, title: `position ${k}` })))) : null;
}

function nearestTo(i) {
  if (!numNearest) return null;
  const found = row(E.nearest, i, numNearest).map((other, k) => [other, row(E.cosines, i, numNearest)[k]]);
  const of = E.num_compared < content.num_components ? `the ${plural(E.num_compared, "strongest component")}` : "all components";
  return make("section", {}, make("h2", { textContent: "Nearest examples" }),
    make("p", { className: "note", textContent: `By the cosine of the effects of ${of}, among ${plural(content.num_examples, "example")}.${E.label.some(label => label !== null) ? ` The ${content.output} depends on an example's label, so examples of one class are near each other for that alone.` : ""}` }),
    cards(...found.map(([id, cosine]) => card(id, make("span", { textContent: `cosine ${correlation(cosine)}` }), make("span", { textContent: classesOf(id) })))));
}

function examplePage(id) {
  const i = placeOf.get(id);
  if (i === undefined) {
    return [make("h1", { textContent: `Example ${id}` }), make("p", { textContent: `There is no page of this example: the page holds ${plural(E.ids.length, "example")} of ${content.num_examples.toLocaleString("en")}.` }),
      make("p", {}, make("a", { href: "#examples", textContent: "All examples" }))];
  }
  const { box, update } = whatIfBox(i), kept = weightsOf(i);
  const csv = csvButton(`weights-of-example-${id}`, () => [["component", "weight", ...(E.standard_errors ? ["standard error"] : [])], ...kept.map(({ id, weight, error }) => [nameOf(id), weight, ...(E.standard_errors ? [error] : [])])]);
  const errors = E.standard_errors ? " Lines at the ends of bars: ± one standard error." : "";
  const predicted = row(E.predicted, i, E.num_masks), measured = row(E.true, i, E.num_masks);
  const page = [
    make("nav", { className: "steps" }, make("a", { href: "#examples", textContent: "All examples" }), step(i ? `#example-${E.ids[i - 1]}` : "", "← before"), step(i + 1 < E.ids.length ? `#example-${E.ids[i + 1]}` : "", "next →")),
    make("h1", { textContent: `Example ${id}` }),
    make("div", { className: "about" }, make("div", { className: "portrait" }, pictureOf(id)), facts([E.label[i] !== null ? ["class", classWord(E.label[i])] : null,
      E.prediction[i] !== null ? ["the model says", make("span", { className: isWrong(i) ? "wrong" : "", textContent: classWord(E.prediction[i]) })] : null,
      [`${content.output}, measured`, text(E.margin[i])], [`${content.output}, predicted`, text(E.whole[i])], ["correlation on held-out masks", correlation(E.correlation[i])],
      ...Object.entries(E.columns).map(([name, values]) => [name, values[i]])])),
    tokensOf(id),
    make("section", {}, make("h2", { textContent: "Its strongest components" }),
      make("p", { className: "note", textContent: `What keeping each adds to the ${content.output}, from the linear model's value with everything ablated up to that with everything kept. No mask ablates everything, so the model itself may give another value there.${errors}` }),
      kept.length ? waterfall(i, update) : make("p", { textContent: "All its weights are 0." }), make("div", { className: "tools" }, csv)),
    kept.length ? box : null,
    make("section", {}, make("h2", { textContent: "Predicted and measured" }), figureOf(`example ${id} predicted and measured`, scatter(predicted, measured), `Under ${plural(E.num_masks, "held-out mask")} that ablate ${text(100 * content.fractions[E.column])}% of the components; on the dashed line both are equal.`),
      csvButton(`example-${id}-masks`, () => [["mask", "predicted", "measured"], ...predicted.map((value, k) => [k, value, measured[k]])])),
    nearestTo(i),
  ];
  queueMicrotask(update);
  return page;
}
