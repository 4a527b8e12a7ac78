// An example's strongest components as bars, which of them are ablated, and what is predicted then.

const off = new Set(); // components that are ticked off, for all examples

// The ten strongest components as bars, from what is predicted with them ablated to what is with them kept; redraw() moves
// the bars to where they are without the components that are off. Everything ablated would be far away in most runs, and
// the bars too small to see.
function waterfall(i, onTick) {
  const kept = weightsOf(i), strongest = kept.slice(0, 10).filter(({ weight }) => weight), whole = E.whole[i], margin = E.margin[i], many = strongest.length > 1 ? `these ${strongest.length}` : "it";
  // One number of decimals for bars and marks, so that they can be added: three digits of the weakest bar, or fewer.
  const size = of => Math.floor(Math.log10(Math.abs(of) || 1)), digits = strongest.length ? Math.min(Math.max(Math.min(2 - size(strongest.at(-1).weight), 3 - size(strongest[0].weight)), 0), 6) : 2;
  const written = (value, sign = "") => (sign && value > 0 ? sign : "") + value.toFixed(digits).replace("-", "−");
  const mark = (name, more = {}) => ({ name, mark: true, ...more });
  const numOthers = content.num_components - strongest.length, start = mark(numOthers ? `with ${many} ablated` : "everything ablated"), asked = mark("", { className: "asked" });
  const lines = [start, ...strongest.map(one => ({ ...one })), asked, mark("everything kept, predicted", { at: whole }), ...(isNumber(margin) ? [mark("everything kept, measured", { at: margin, className: "measured" })] : [])];
  for (const line of lines) {
    line.zero = make("i", { className: "zero" });
    line.bar = make("i", { className: line.mark ? `mark ${line.className ?? ""}` : sideOf(line.weight) });
    line.whisker = isNumber(line.error) ? make("i", { className: "error", title: `standard error ${text(line.error)}` }) : null;
    line.said = line.mark ? make("span", { className: "name", textContent: line.name }) : componentLink(line.id, { className: "name" });
    line.value = make("span", { className: "n" });
    line.tick = line.mark ? make("span") : tickOf(line.id, onTick);
    line.row = make("div", { className: line.className ?? "" }, line.tick, line.said, make("span", { className: "track" }, line.zero, line.bar, line.whisker), line.value);
  }
  // The base value may lie so far from the output that bars on its scale could not be seen: it has no mark.
  const sum = make("span", { className: "n" }), plain = (name, value) => make("div", { className: "base" }, make("span"), make("span", { className: "name", textContent: name }), make("span"), value);
  const base = numOthers ? [plain("the linear model's intercept", make("span", { className: "n", textContent: written(E.base[i]) })), plain(`the other ${plural(numOthers, "component")}`, sum)] : [];
  function redraw() {
    const { ablated, value } = whatIf(i), ofThese = strongest.filter(({ id }) => off.has(id)), numMore = ablated.length - ofThese.length;
    const most = strongest.reduce((sum, { weight }) => sum + weight, 0), lost = ofThese.reduce((sum, { weight }) => sum + weight, 0);
    start.at = value + lost - most;
    asked.at = value;
    const others = E.components ? start.at - E.base[i] : kept.slice(strongest.length).reduce((sum, { id, weight }) => off.has(id) ? sum : sum + weight, 0);
    sum.textContent = others === 0 ? "0" : written(others, "+");
    start.said.textContent = start.name + (numMore ? `, and ${plural(numMore, "other")}` : "");
    asked.said.textContent = `with ${plural(ablated.length, "component")} ablated, predicted`;
    asked.row.hidden = !ablated.length;
    let at = start.at;
    for (const line of lines) {
      if (line.mark) { line.from = line.end = line.at; continue; }
      const isOff = off.has(line.id);
      Object.assign(line, { from: at, end: at + line.weight });
      if (!isOff) at = line.end;
      line.row.classList.toggle("off", isOff);
      line.tick.checked = !isOff;
    }
    const ends = lines.flatMap(({ from, end, error }) => [from, end, ...(isNumber(error) ? [end - error, end + error] : [])]);
    const [low, high] = axisOf([whole - most, ...ends]), share = of => `${100 * of / (high - low || 1)}%`;
    for (const line of lines) {
      if (line.mark) line.value.textContent = written(line.at);
      else line.value.textContent = written(line.weight, "+") + (line.whisker ? ` ±${text(line.error)}` : "");
      line.zero.style.left = share(-low);
      line.bar.style.left = share(Math.min(line.from, line.end) - low);
      if (!line.mark) line.bar.style.width = share(Math.abs(line.end - line.from));
      if (line.whisker) Object.assign(line.whisker.style, { left: share(line.end - line.error - low), width: share(2 * line.error) });
    }
  }
  return { box: make("div", { className: "waterfall" }, ...base, ...lines.map(({ row }) => row)), redraw };
}

function tickOf(id, onTick) {
  const tick = make("input", { type: "checkbox", checked: !off.has(id), title: "kept; untick to ablate it", data: { component: id } });
  tick.setAttribute("aria-label", `keep ${nameOf(id)}`);
  tick.addEventListener("change", () => { if (tick.checked) off.delete(id); else off.add(id); onTick(); });
  return tick;
}

// The error of a prediction that ablates components whose weights add up to a size; NaN beyond what was measured.
function errorAt(i, size) {
  const at = E.sizes.findIndex(known => known >= size);
  if (at <= 0) return at ? NaN : E.scales[i] * E.errors_by_size[0];
  const share = (size - E.sizes[at - 1]) / (E.sizes[at] - E.sizes[at - 1]);
  return E.scales[i] * (E.errors_by_size[at - 1] + share * (E.errors_by_size[at] - E.errors_by_size[at - 1]));
}

// The output that was measured with this component alone ablated, where the page has it.
function aloneOf(i, id) {
  const width = E.alone ? E.alone.length / E.ids.length : 0, k = E.alone ? row(E.alone, i, width).indexOf(id) : -1;
  return k < 0 ? null : E.alone_outputs[i * width + k];
}

// The prediction without the components that are off, with its measured error.
function whatIf(i) {
  const known = new Map(weightsOf(i).map(({ id, weight }) => [id, weight])), weightOf = id => known.get(id) ?? 0;
  const ablated = [...off].filter(id => known.has(id) || !E.components), unknown = off.size - ablated.length;
  const value = ablated.length === content.num_components ? E.base[i] : E.whole[i] - ablated.reduce((sum, id) => sum + weightOf(id), 0), size = ablated.reduce((sum, id) => sum + Math.abs(weightOf(id)), 0);
  const measured = off.size === 1 && ablated.length ? aloneOf(i, ablated[0]) : null;
  return { ablated, unknown, value, size, measured, error: ablated.length > content.most_ablated ? NaN : errorAt(i, size) };
}

// What names and patterns, between commas, stand for: ids, and the parts that stand for none. A name is that component
// alone; only where nothing is spelled like it do capitals not count.
function namedComponents(asked) {
  const all = idsByName(), found = new Set(), wrong = [];
  for (const part of all.has(asked) ? [asked] : asked.split(",").map(name => name.trim()).filter(Boolean)) {
    const source = part.replace(/[.+^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".");
    const like = flags => { const pattern = new RegExp(`^${source}$`, flags); return [...all].filter(([name]) => pattern.test(name)); };
    const exact = all.has(part) ? [[part, all.get(part)]] : like("s"), those = exact.length ? exact : like("si");
    those.forEach(([, id]) => found.add(id));
    if (!those.length) wrong.push(part);
  }
  return { found: [...found], wrong };
}

// What is ticked off and what that does, beside the ticks; redraw() is of the bars.
function whatIfBox(i, redraw) {
  const result = make("div", { className: "result", role: "status" }), chips = make("p", { className: "chips" }), notes = make("p", { className: "note" });
  const held = new Set(weightsOf(i).map(({ id }) => id)), isHeld = id => held.has(id) || !E.components;
  const names = make("datalist", { id: "kept-components" }, ...[...held].slice(0, 2000).map(id => make("option", { value: nameOf(id) })));
  const search = make("input", { type: "search", placeholder: "name, pattern*", title: "names and patterns with * and ?, between commas", autocomplete: "off", "aria-label": "components to ablate" });
  const answer = make("p", { className: "answer", role: "status" }), go = button("", () => {}, { type: "submit", hidden: true });
  search.setAttribute("list", "kept-components");
  function ablate(ids) {
    const missing = ids.filter(id => !isHeld(id));
    ids.filter(isHeld).forEach(id => off.add(id));
    search.value = "";
    go.hidden = true;
    answer.textContent = missing.length ? `The page holds no weight of this example for ${missing.length === 1 ? nameOf(missing[0]) : plural(missing.length, "component")}: not among its ${E.num_weights.toLocaleString("en")} strongest.` : "";
    update();
  }
  function unknownName(part) {
    const inside = [...idsByName().keys()].filter(name => name.toLowerCase().includes(part.toLowerCase())).length;
    return `No component is called “${part}”, and ${inside && !/[*?]/.test(part) ? `${plural(inside, "name")} ${inside === 1 ? "has" : "have"} it inside: *${part}* is ${inside === 1 ? "that one" : "those"}.` : "none is like it."}`;
  }
  search.addEventListener("input", event => {
    const asked = search.value.trim(), id = idsByName().get(asked);
    // A name that was picked from the list is one; a name that is being typed may be the beginning of a longer one.
    if (id !== undefined && [undefined, "insertReplacementText"].includes(event.inputType)) { ablate([id]); return; }
    const { found, wrong } = namedComponents(asked), few = found.slice(0, 3).map(nameOf).join(", ");
    go.hidden = !found.length;
    go.textContent = `Ablate ${found.length.toLocaleString("en")}`;
    answer.textContent = [...wrong.map(unknownName), found.length ? `${plural(found.length, "component")}: ${few}${found.length > 3 ? ", …" : ""}; Enter ablates ${found.length === 1 ? "it" : "them"}.` : ""].filter(Boolean).join(" ");
  });
  const form = make("form", { className: "ablate" }, make("label", {}, "Ablate ", search), names, go);
  form.addEventListener("submit", event => {
    event.preventDefault();
    const { found } = namedComponents(search.value.trim());
    if (found.length) ablate(found);
  });
  const clear = button("Keep all again", () => { off.clear(); update(); });
  form.append(clear);
  function update() {
    redraw();
    const { ablated, unknown, value, size, measured, error } = whatIf(i), whole = E.whole[i];
    chips.replaceChildren(...ablated.slice(0, 12).map(id => button(`${nameOf(id)} ×`, () => { off.delete(id); update(); }, { title: "keep it again" })),
      ablated.length > 12 ? make("span", { className: "note", textContent: `and ${plural(ablated.length - 12, "other")}` }) : "");
    clear.hidden = !off.size;
    const elsewhere = unknown ? `${plural(unknown, "component")} ticked off on other examples: the page holds no weight of this example for ${unknown === 1 ? "it" : "them"}, so it is small.` : "";
    const all = E.components ? ` The page holds the ${E.num_weights.toLocaleString("en")} strongest of ${content.num_components.toLocaleString("en")} components of each example.` : "";
    if (!ablated.length) {
      result.replaceChildren(make("p", { className: "note", textContent: "Untick components, or name some, to ablate them." }));
      notes.textContent = elsewhere + all;
      return;
    }
    const [said, by] = withError(value, error), [kept] = withError(whole, error), [change] = withError(value - whole, error);
    const far = !isNumber(error), around = far ? 0 : error, known = measured === null ? [] : [measured];
    const [low, high] = axisOf([whole, value - around, value + around, ...known]), spread = high - low || 1, x = of => `${100 * (of - low) / spread}%`;
    const place = (className, from, to) => { const part = make("i", { className }); part.style.left = x(Math.min(from, to)); if (from !== to) part.style.width = `${Math.abs(to - from) / spread * 100}%`; return part; };
    result.replaceChildren(
      make("p", { className: "lead", textContent: `Prediction: ${content.output} ${said}${far ? ", with an unknown error" : ` ± ${by}`}, ${value > whole ? "+" : ""}${change} from ${kept} with everything kept.` }),
      known.length ? make("p", { className: "lead measured", textContent: `Measured: ${withError(measured, error)[0]}, with this component alone ablated.` }) : "",
      make("div", { className: "track wide" }, place("zero", 0, 0), ...(far ? [] : [place("band", value - error, value + error)]), place(sideOf(value - whole), whole, value), place("mark", value, value), ...known.map(at => place("mark measured", at, at))));
    const why = ablated.length > content.most_ablated ? `No held-out mask ablates more than ${plural(content.most_ablated, "component")}` : `Hardly any held-out mask ablates components whose weights add up to as much (${text(size)} without signs)`;
    const what = far ? `${why}, so how far off this is was not measured.` : `± is the root mean square error under held-out masks whose ablated components have weights that add up to as much (${text(size)} without signs), of all examples that the page shows, by how far off predictions of this one are.`;
    notes.textContent = `${known.length ? "" : "Not measured. "}${what} ${elsewhere}${all}`;
  }
  const box = make("div", { className: "whatif" }, make("h2", { textContent: "What if" }), result, chips, form, answer);
  return { box: make("aside", {}, box, notes), update };
}
