// The figures and tables of a comparison.

const content = JSON.parse(document.getElementById("content").textContent);
const [one, other] = content.names;

// Packed columns as rows of numbers and texts.
function rowsOf(columns) {
  const known = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Array.isArray(values) ? values : unpack(values)]));
  const length = Object.values(known)[0].length;
  return Array.from({ length }, (_, i) => Object.fromEntries(Object.entries(known).map(([name, values]) => [name, values[i]])));
}
const examples = rowsOf(content.examples), components = rowsOf(content.components), largest = rowsOf(content.largest);
for (const row of components) row.half = 1.96 * row.standard_error;

const say = (name, key, more = {}) => ({ name, value: row => row[key], ...more });
const word = (name, key, more = {}) => say(name, key, { text: true, value: row => row[key] ?? "", ...more });
const r = (name, key, title) => say(name, key, { title, cell: row => make("td", { className: "n", textContent: correlation(row[key]) }) });
const apart = (rows, key) => {
  const most = Math.max(...rows.map(row => Math.abs(row[key])).filter(isNumber), 0);
  return say("difference", key, { title: `${one} less ${other}; sorted by its size`, size: row => Math.abs(row[key]), cell: row => barCell(row[key], most) });
};
// Into the report of the first side that has one.
const reported = content.reports.findIndex(report => report), into = (kind, of, className) => make("td", { className }, reported < 0 ? String(of)
  : make("a", { href: `${content.reports[reported]}#${kind}-${encodeURIComponent(of)}`, title: `in the report of ${content.names[reported]}`, textContent: of }));
const has = (rows, key) => rows.some(row => row[key] !== undefined && row[key] !== null && row[key] !== "" && !Number.isNaN(row[key]));

document.getElementById("example-table").append(tableOf("examples", [
  say("example", "id", { cell: row => into("example", row.id, "n") }),
  ...has(examples, "label") ? [word("class", "label"), word("predicted", "prediction")] : [],
  r("rank r", "spearman", "Spearman's correlation of the weights"), r("r", "pearson", "Pearson's correlation of the weights"),
  say(`top ${content.num_strongest}`, "top_10", { title: "how many of the strongest components are the same", cell: row => make("td", { className: "n", textContent: isNumber(row.top_10) ? row.top_10 : "–" }) }),
  say(`size, ${one}`, "size_one"), say(`size, ${other}`, "size_other"), say("difference", "difference", { title: "root mean square" }),
  ...has(examples, "beyond") ? [say("beyond 1.96", "beyond", { title: "share of differences larger than 1.96 standard errors", cell: row => make("td", { className: "n", textContent: percent(row.beyond) }) })] : [],
], examples, { sort: has(examples, "label") ? 3 : 1, down: false, page: 15 }));

document.getElementById("component-table").append(tableOf("components", [
  word("component", "name", { cell: row => into("component", row.name, "") }), word("kind", "kind"), ...has(components, "layer") ? [word("layer", "layer")] : [],
  say(one, "mean_one"), say(other, "mean_other"), apart(components, "mean_difference"), ...has(components, "half") ? [say("±", "half")] : [], say("spread", "spread"), r("r", "pearson", "correlation over examples"),
], components, { sort: 4 + has(components, "layer"), page: 15 }));

document.getElementById("largest-table").append(tableOf("largest differences", [
  say("example", "id", { cell: row => into("example", row.id, "n") }), word("component", "name", { cell: row => into("component", row.name, "") }),
  say(one, "one"), say(other, "other"), apart(largest, "difference"), ...has(largest, "z") ? [say("z", "z", { size: row => Math.abs(row.z) })] : [],
], largest, { sort: 4 + has(largest, "z"), page: 15 }));

function correlations() {
  const [width, height, left, bottom, top] = [340, 260, 14, 34, 18], { edges: [low, high], counts } = content.histogram;
  const svg = frame(width, height, "examples by the rank correlation of their weights");
  const most = Math.max(...counts, 1), step = (width - 2 * left) / counts.length;
  const x = value => left + (value - low) / (high - low) * (width - 2 * left);
  counts.forEach((count, i) => {
    const tall = count / most * (height - bottom - top), [from, to] = [i, i + 1].map(at => low + at / counts.length * (high - low));
    svg.append(titled(draw("rect", { x: left + i * step + .5, y: height - bottom - tall, width: Math.max(step - 1, 1), height: tall, fill: "var(--neutral)" }),
      `${plural(count, "example")}, ${correlation(from)} to ${correlation(to)}`));
  });
  svg.append(draw("line", { x1: left, x2: width - left, y1: height - bottom, y2: height - bottom, stroke: "var(--faint)" }));
  for (const value of [low, (low + high) / 2, high]) svg.append(words(value.toFixed(2), x(value), height - bottom + 14, { "text-anchor": "middle" }));
  svg.append(words(`most in a bar: ${most.toLocaleString("en")}`, left, 11, { fill: "var(--faint)" }),
    words("rank correlation of an example's weights", width / 2, height - 4, { "text-anchor": "middle", fill: "var(--faint)" }));
  return svg;
}

function means() {
  const [width, height, left, bottom, top] = [340, 260, 66, 34, 10];
  const rows = components.filter(row => isNumber(row.mean_one) && isNumber(row.mean_other));
  const svg = frame(width, height, `mean weights of components, ${other} against ${one}`);
  const scaleOf = (key, from, to) => {
    const values = rows.map(row => row[key]), low = Math.min(...values, 0), high = Math.max(...values, 0), spread = high - low || 1;
    return { low, high, at: value => from + (value - low) / spread * (to - from) };
  };
  const x = scaleOf("mean_one", left, width - 10), y = scaleOf("mean_other", height - bottom, top);
  const line = (x1, y1, x2, y2) => svg.append(draw("line", { x1, y1, x2, y2, stroke: "var(--faint)" }));
  line(left, y.at(0), width - 10, y.at(0));
  line(x.at(0), height - bottom, x.at(0), top);
  for (const row of rows) {
    svg.append(titled(draw("circle", { cx: x.at(row.mean_one).toFixed(1), cy: y.at(row.mean_other).toFixed(1), r: 2.6, fill: "var(--neutral)", "fill-opacity": .6 }),
      `${row.name}: ${text(row.mean_one)} and ${text(row.mean_other)}`));
  }
  svg.append(words(text(x.low), left, height - bottom + 14), words(text(x.high), width - 10, height - bottom + 14, { "text-anchor": "end" }),
    words(text(y.high), left - 5, top + 8, { "text-anchor": "end" }), words(text(y.low), left - 5, height - bottom, { "text-anchor": "end" }),
    words(shorten(one, 40), (left + width) / 2, height - 4, { "text-anchor": "middle" }),
    words(shorten(other, 30), 12, height / 2, { "text-anchor": "middle", transform: `rotate(-90 12 ${height / 2})` }));
  return svg;
}

document.getElementById("figures").append(
  figureOf("rank correlations", correlations(), "How much the two agree, example by example."),
  figureOf("mean weights", means(), "Mean weights of the components in the table below; each axis has its own scale."));
