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
  if (!hasClasses) filter.elements.text.placeholder = "id or words";
  const again = () => { numShown = PAGE; showExamples(); };
  filter.addEventListener("input", again);
  filter.addEventListener("change", event => { if (event.target.tagName === "SELECT") again(); });
  filter.addEventListener("submit", event => event.preventDefault());
  filter.hidden = false;
}

const hasClasses = E.label.some(label => label !== null) || E.prediction.some(label => label !== null);
const errorOf = i => E.margin[i] - E.targets[i]; // of a regression
const saidOf = E.ids.map((_, i) => [E.label[i] === null ? "" : classWord(E.label[i]), E.prediction[i] === null ? "" : classWord(E.prediction[i]),
  E.excerpts[i] ?? "", ...Object.entries(E.columns).map(([name, values]) => `${name} ${values[i]}`)].map(said => said.toLowerCase()));

function chosenExamples() {
  const asked = Object.fromEntries(new FormData(filter)), found = asked.text.trim();
  // The name of a class is that class, and not its words anywhere: "class 3" is not column 3 of class 5.
  const isClass = label => label !== null && classWord(label).toLowerCase() === found.toLowerCase();
  const isFound = [...E.label, ...E.prediction].some(isClass) ? (_, i) => isClass(E.label[i]) || isClass(E.prediction[i]) : finder(found);
  const isIt = i => String(E.ids[i]) === found;
  const places = E.ids.map((_, i) => i).filter(i =>
    (isIt(i) || isFound(saidOf[i], i))
    && (!asked.label || String(E.label[i]) === asked.label) && (!asked.taken || String(E.prediction[i]) === asked.taken)
    && (!asked.right || E.label[i] !== null && isWrong(i) === (asked.right === "wrong"))
    && content.groupings.every((_, g) => !asked[`group${g}`] || String(E.codes[g][i]) === asked[`group${g}`]));
  const low = value => isNumber(value) ? value : -Infinity;
  const by = { id: () => 0, worst: (a, b) => low(E.correlation[a]) - low(E.correlation[b]), best: (a, b) => low(E.correlation[b]) - low(E.correlation[a]),
    margin: (a, b) => low(E.margin[a]) - low(E.margin[b]), error: (a, b) => low(Math.abs(errorOf(b))) - low(Math.abs(errorOf(a))) };
  return places.sort((a, b) => isIt(b) - isIt(a) || by[asked.order](a, b) || a - b);
}

// The columns that group examples; the others stand on an example's page.
function columnsOf(i) {
  const names = content.groupings.map(grouping => grouping.name);
  return Object.entries(E.columns).filter(([name]) => names.includes(name)).map(([name, values]) => `${name} ${values[i]}`).join(", ");
}

// What the unablated model makes of an example, and how well its ablations are predicted.
function linesOf(i) {
  const line = (textContent, className = "") => make("span", { className, textContent });
  const [predicted, by] = withError(E.whole[i], errorAt(i, 0));
  return [
    E.targets ? line(`target ${text(E.targets[i])}`) : hasClasses ? line(classText(E.label[i], E.prediction[i]), isWrong(i) ? "wrong" : "") : null,
    line(E.targets ? `the model says ${text(E.margin[i])}` : `${content.output} ${text(E.margin[i])}`),
    E.targets ? line(`error ${signed(errorOf(i))}`) : hasClasses ? null : line(`predicted ${predicted} ± ${by}`),
    line(`r ${correlation(E.correlation[i])}`), line(columnsOf(i), "note"),
  ];
}

// Columns of the file of examples: a name, and the value of an example by its place.
function exampleColumns() {
  const named = (name, values) => [[name, i => values[i]], ...(values.some(value => content.classes[value]) ? [[`${name} name`, i => content.classes[values[i]] ?? ""]] : [])];
  return [["example", i => E.ids[i]], ...(hasClasses ? [...named("class", E.label), ...named("prediction", E.prediction)] : []),
    [content.output, i => E.margin[i]], ...(E.targets ? [["error", errorOf]] : []),
    [`predicted ${content.output}`, i => E.whole[i]], ["error of predictions", i => E.errors[i * content.fractions.length + E.column]], ["correlation", i => E.correlation[i]],
    ...Object.entries(E.columns).map(([name, values]) => [name, i => values[i]])];
}

function showExamples() {
  const found = chosenExamples(), place = document.getElementById("list");
  filter.elements.count.textContent = `${found.length} of ${E.ids.length}`;
  const pictures = Object.keys(content.images).length, few = `Pictures of ${pictures.toLocaleString("en")} of ${plural(content.num_images, "example")}, as many as the page has room for.`;
  place.replaceChildren(pictures < content.num_images ? make("p", { className: "note", textContent: few }) : "", cards(...found.slice(0, numShown).map(i => card(E.ids[i], ...linesOf(i)))),
    found.length ? "" : make("p", { className: "note", textContent: "No example is like that." }),
    make("div", { className: "tools" },
      found.length > numShown ? button(`${found.length - numShown} more`, () => { numShown += 4 * PAGE; showExamples(); }, { className: "more" }) : null,
      csvButton("examples", () => {
        const columns = exampleColumns();
        return [columns.map(([name]) => name), ...chosenExamples().map(i => columns.map(([, value]) => value(i)))];
      }, () => chosenExamples().length < E.ids.length)));
}

// "examples:label=3&taken=5" of the address.
function filterBy(asked) {
  filter.reset();
  for (const [name, value] of new URLSearchParams(asked)) if (filter.elements[name]) filter.elements[name].value = value;
  numShown = PAGE;
  showExamples();
}

// A text as the model reads it.
function tokensOf(id) {
  const tokens = content.tokens[id];
  return tokens ? make("details", {}, make("summary", { textContent: plural(tokens.length, "token") }),
    tokenBox(tokens.map((token, k) => make("span", { textContent: token, title: `position ${k}` })))) : null;
}

function nearestTo(i) {
  if (!numNearest) return null;
  const found = row(E.nearest, i, numNearest).map((other, k) => [other, row(E.cosines, i, numNearest)[k]]);
  const of = E.num_compared < content.num_components ? `the ${plural(E.num_compared, "strongest component")}` : "all components";
  return make("section", {}, make("h2", { textContent: "Nearest examples" }),
    make("p", { className: "note", textContent: `By the cosine of the effects of ${of}, among ${plural(content.num_examples, "example")}.${E.label.some(label => label !== null) ? ` The ${content.output} depends on an example's label, so examples of one class are near each other for that alone.` : ""}` }),
    cards(...found.map(([id, cosine]) => card(id, make("span", { textContent: `cosine ${correlation(cosine)}` }), make("span", { textContent: classesOf(id) })))));
}

function examplePage(asked) {
  const id = /^\d+$/.test(asked) ? Number(asked) : null, i = placeOf.get(id);
  if (i === undefined) {
    const why = id === null || id >= content.num_examples ? `The run has no such example: their ids are the numbers from 0 to ${(content.num_examples - 1).toLocaleString("en")}.`
      : `There is no page of this example: the page holds ${plural(E.ids.length, "example")} of ${content.num_examples.toLocaleString("en")}.`;
    return [make("h1", { textContent: `Example ${id ?? asked}` }), make("p", { textContent: why }),
      make("p", {}, make("a", { href: "#examples", textContent: "All examples" }))];
  }
  const kept = weightsOf(i), bars = waterfall(i, () => box.update()), box = whatIfBox(i, bars.redraw);
  const csv = csvButton(`weights-of-example-${id}`, () => [["component", "weight", ...(E.standard_errors ? ["standard error"] : [])], ...kept.map(({ id, weight, error }) => [nameOf(id), weight, ...(E.standard_errors ? [error] : [])])]);
  const errors = E.standard_errors ? " Lines at the ends of bars: ± one standard error." : "";
  const predicted = row(E.predicted, i, E.num_masks), measured = row(E.true, i, E.num_masks);
  const page = [
    make("nav", { className: "steps" }, make("a", { href: "#examples", textContent: "All examples" }), step(i ? `#example-${E.ids[i - 1]}` : "", "← before"), step(i + 1 < E.ids.length ? `#example-${E.ids[i + 1]}` : "", "next →")),
    make("h1", { textContent: `Example ${id}` }),
    make("div", { className: "about" }, make("div", { className: "portrait" }, pictureOf(id)), facts([E.label[i] !== null ? ["class", classWord(E.label[i])] : null,
      E.prediction[i] !== null ? ["the model says", make("span", { className: isWrong(i) ? "wrong" : "", textContent: classWord(E.prediction[i]) })] : null,
      ...(E.targets ? [["target", text(E.targets[i])], ["the model says", text(E.margin[i])], ["error", signed(errorOf(i))]] : [[`${content.output}, measured`, text(E.margin[i])]]), [`${content.output}, predicted`, text(E.whole[i])], ["the linear model's intercept", text(E.base[i]), make("span", { className: "note", textContent: " what it predicts with everything ablated; no mask does that, so the model itself may give another value" })], [`correlation on ${plural(E.num_evaluated, "held-out mask")}`, correlation(E.correlation[i])],
      ...Object.entries(E.columns).filter(([name]) => !E.targets || name !== "target").map(([name, values]) => [name, values[i]])])),
    tokensOf(id),
    make("section", {}, make("h2", { textContent: "Its strongest components" }),
      make("p", { className: "note", textContent: `What keeping each adds to the ${content.output} that the linear model predicts. Untick one to ablate it.${errors}` }),
      kept.some(({ weight }) => weight) ? make("div", { className: "explain" }, bars.box, box.box) : make("p", { textContent: "All its weights are 0." }), make("div", { className: "tools" }, csv)),
    make("section", {}, make("h2", { textContent: "Predicted and measured" }), figureOf(`example ${id} predicted and measured`, scatter(predicted, measured), `Under ${E.num_masks < E.num_evaluated ? `the first ${E.num_masks} of ${plural(E.num_evaluated, "held-out mask")}` : `all ${plural(E.num_masks, "held-out mask")}`} that ablate ${percentOf(content.fractions[E.column])} of the components; on the dashed line both are equal.`),
      csvButton(`example-${id}-masks`, () => [["mask", "predicted", "measured"], ...predicted.map((value, k) => [k, value, measured[k]])])),
    nearestTo(i),
  ];
  box.update();
  return page;
}
