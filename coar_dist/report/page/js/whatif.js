// An example's strongest components as bars, which of them are ablated, and what is predicted then.

const off = new Set(); // components that are ticked off, for all examples

// The ten strongest components as bars, from what is predicted with them ablated to what is with them kept; redraw() moves
// the bars to where they are without the components that are off. Everything ablated would be far away in most runs, and
// the bars too small to see.
function waterfall(i, onTick) {
  const strongest = weightsOf(i).slice(0, 10), whole = E.whole[i], margin = E.margin[i], many = strongest.length > 1 ? `these ${strongest.length}` : "it";
  const mark = (name, more = {}) => ({ name, mark: true, ...more });
  const numOthers = content.num_components - strongest.length, start = mark(numOthers ? `with ${many} ablated` : "everything ablated"), asked = mark("", { className: "asked" });
  const lines = [start, ...strongest.map(one => ({ ...one })), asked, mark("everything kept, predicted", { at: whole }), ...(isNumber(margin) ? [mark("everything kept, measured", { at: margin, className: "measured" })] : [])];
  for (const line of lines) {
    line.zero = make("i", { className: "zero" });
    line.bar = make("i", { className: line.mark ? `mark ${line.className ?? ""}` : sideOf(line.weight) });
    line.whisker = isNumber(line.error) ? make("i", { className: "error", title: `standard error ${text(line.error)}` }) : null;
    line.said = line.mark ? make("span", { className: "name", textContent: line.name }) : componentLink(line.id, { className: "name" });
    line.value = make("span", { className: "n", textContent: line.mark ? "" : signed(line.weight) + (line.whisker ? ` ±${text(line.error)}` : "") });
    line.tick = line.mark ? make("span") : tickOf(line.id, onTick);
    line.row = make("div", { className: line.className ?? "" }, line.tick, line.said, make("span", { className: "track" }, line.zero, line.bar, line.whisker), line.value);
  }
  // The base value may lie so far from the output that bars on its scale could not be seen: it has no mark.
  const sum = make("span", { className: "n" }), plain = (name, value) => make("div", { className: "base" }, make("span"), make("span", { className: "name", textContent: name }), make("span"), value);
  const base = numOthers ? [plain("everything ablated", make("span", { className: "n", textContent: text(E.base[i]) })), plain(`the other ${plural(numOthers, "component")}`, sum)] : [];
  function redraw() {
    const { ablated, value } = whatIf(i), ofThese = strongest.filter(({ id }) => off.has(id)), numMore = ablated.length - ofThese.length;
    const most = strongest.reduce((sum, { weight }) => sum + weight, 0), lost = ofThese.reduce((sum, { weight }) => sum + weight, 0);
    start.at = value + lost - most;
    asked.at = value;
    sum.textContent = signed(start.at - E.base[i]);
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
    const digits = Math.min(Math.max(2 - Math.floor(Math.log10(high - low || 1)), 0), 6);
    for (const line of lines) {
      if (line.mark) line.value.textContent = line.at.toFixed(digits).replace("-", "−");
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

// What is ticked off and what that does, beside the ticks; redraw() is of the bars.
function whatIfBox(i, redraw) {
  const result = make("div", { className: "result", role: "status" }), chips = make("p", { className: "chips" }), notes = make("p", { className: "note" });
  const held = new Set(weightsOf(i).map(({ id }) => id)), isHeld = id => held.has(id) || !E.components;
  const names = make("datalist", { id: "kept-components" }, ...[...held].slice(0, 2000).map(id => make("option", { value: nameOf(id) })));
  const search = make("input", { type: "search", placeholder: "name or pattern", autocomplete: "off", "aria-label": "component to ablate" });
  const answer = make("p", { className: "answer", role: "status" });
  search.setAttribute("list", "kept-components");
  function like(asked) {
    const isFound = finder(asked);
    return [...idsByName()].filter(([name]) => isFound([name.toLowerCase()])).map(([, id]) => id);
  }
  function ablate(ids) {
    const missing = ids.filter(id => !isHeld(id));
    ids.filter(isHeld).forEach(id => off.add(id));
    search.value = "";
    answer.textContent = missing.length ? `The page holds no weight of this example for ${missing.length === 1 ? nameOf(missing[0]) : plural(missing.length, "component")}: not among its ${E.num_weights.toLocaleString("en")} strongest.` : "";
    update();
  }
  search.addEventListener("input", () => {
    const asked = search.value.trim(), id = idsByName().get(asked);
    if (id !== undefined) { ablate([id]); return; }
    const found = asked ? like(asked) : [], few = found.slice(0, 3).map(nameOf).join(", ");
    answer.textContent = !asked ? "" : !found.length ? `No component is called “${asked}”, and none is like it.`
      : `${plural(found.length, "component")}: ${few}${found.length > 3 ? ", …" : ""}; Enter ablates ${found.length === 1 ? "it" : "them"}.`;
  });
  const form = make("form", { className: "ablate" }, make("label", {}, "Ablate ", search), names);
  form.addEventListener("submit", event => {
    event.preventDefault();
    const found = search.value.trim() ? like(search.value.trim()) : [];
    if (found.length) ablate(found);
  });
  const clear = button("Keep all again", () => { off.clear(); update(); });
  form.append(clear);
  function update() {
    redraw();
    const { ablated, unknown, value, error, fraction } = whatIf(i), whole = E.whole[i];
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
    const far = ablated.length > content.most_ablated, around = far ? 0 : error; // no error was measured so far away
    const [low, high] = axisOf([whole, value - around, value + around]), spread = high - low || 1, x = of => `${100 * (of - low) / spread}%`;
    const place = (className, from, to) => { const part = make("i", { className }); part.style.left = x(Math.min(from, to)); if (from !== to) part.style.width = `${Math.abs(to - from) / spread * 100}%`; return part; };
    result.replaceChildren(
      make("p", { className: "lead", textContent: `Prediction: ${content.output} ${said}${far ? ", with an unknown error" : ` ± ${by}`}, ${value > whole ? "+" : ""}${change} from ${kept} with everything kept.` }),
      make("div", { className: "track wide" }, place("zero", 0, 0), ...(far ? [] : [place("band", value - error, value + error)]), place(sideOf(value - whole), whole, value), place("mark", value, value)));
    notes.textContent = `Not measured. ${far ? `No held-out mask ablates more than ${plural(content.most_ablated, "component")}, so how far off this is was not measured.` : `± is the root mean square error of such predictions of this example, measured on ${plural(E.num_masks, "held-out mask")} that ablate ${text(100 * fraction)}% of the components.`} ${elsewhere}${all}`;
  }
  const box = make("div", { className: "whatif" }, make("h2", { textContent: "What if" }), result, chips, form, answer);
  return { box: make("aside", {}, box, notes), update };
}
