// Drawings. Blue raises the output and orange lowers it, everywhere.

const sideOf = value => value < 0 ? "down" : "up";

// Where an axis begins and ends: at 0 where that is not so far off that nothing else could be seen.
function axisOf(values) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low;
  return [Math.min(low, low <= span ? 0 : low), Math.max(high, high >= -span ? 0 : high)];
}

// A bar from zero in the middle of a cell, to the right where it raises.
function bar(value, largest, properties = {}) {
  const part = make("i", { className: sideOf(value) });
  const share = largest > 0 ? Math.min(Math.abs(value) / largest, 1) * 50 : 0;
  part.style.width = `${share}%`;
  part.style[value < 0 ? "right" : "left"] = "50%";
  return make("span", { className: "bar", ...properties }, part);
}
function barCell(value, largest) {
  return make("td", { className: "n barred", data: { value } }, bar(isNumber(value) ? value : 0, largest), make("span", { textContent: signed(value) }));
}

function figureOf(name, svg, caption) {
  const words = make("figcaption", {}, caption, " ", ...figureButtons(name, svg));
  return make("figure", { className: "drawn", data: { name } }, scroller(svg), words);
}

function frame(width, height, title) {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  svg.style.width = `${width}px`;
  return svg;
}
const words = (content, x, y, more = {}) => {
  const element = draw("text", { x, y, "font-size": 11, fill: "currentColor", ...more });
  element.textContent = content;
  return element;
};
const titled = (element, title) => { const says = draw("title"); says.textContent = title; element.append(says); return element; };

function histogram(name, edges, counts) {
  const [width, height, left, bottom, top] = [340, 160, 10, 30, 18], [low, high] = edges;
  const svg = frame(width, height, `examples by the weight of ${name}`);
  const most = Math.max(...counts, 1), step = (width - 2 * left) / counts.length;
  const x = value => left + (high > low ? (value - low) / (high - low) : .5) * (width - 2 * left);
  counts.forEach((count, i) => {
    const middle = low + (i + .5) / counts.length * (high - low), tall = count / most * (height - bottom - top);
    svg.append(titled(draw("rect", { x: left + i * step + .5, y: height - bottom - tall, width: Math.max(step - 1, 1), height: tall, fill: `var(--${sideOf(middle)})` }),
      `${plural(count, "example")}, weights ${text(low + i / counts.length * (high - low))} to ${text(low + (i + 1) / counts.length * (high - low))}`));
  });
  svg.append(draw("line", { x1: left, x2: width - left, y1: height - bottom, y2: height - bottom, stroke: "var(--faint)" }));
  if (low < 0 && high > 0) svg.append(draw("line", { x1: x(0), x2: x(0), y1: top, y2: height - bottom + 4, stroke: "currentColor" }), x(0) - left > 60 && width - left - x(0) > 60 ? words("0", x(0), height - bottom + 15, { "text-anchor": "middle" }) : "");
  svg.append(words(text(low), left, height - bottom + 15), words(text(high), width - left, height - bottom + 15, { "text-anchor": "end" }));
  svg.append(words(`most in a bar: ${most.toLocaleString("en")}`, left, 11, { fill: "var(--faint)" }), words("weight", width / 2, height - 3, { "text-anchor": "middle", fill: "var(--faint)" }));
  return svg;
}

function scatter(predicted, measured) {
  const [width, height, left, bottom] = [340, 300, 46, 36];
  const all = [...predicted, ...measured].filter(isNumber);
  const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1], spread = high - low || 1;
  const x = value => left + (value - low) / spread * (width - left - 10);
  const y = value => height - bottom - (value - low) / spread * (height - bottom - 10);
  const svg = frame(width, height, `measured against predicted ${content.outputs}`);
  const line = (x1, y1, x2, y2, more) => svg.append(draw("line", { x1, y1, x2, y2, stroke: "var(--faint)", ...more }));
  line(left, height - bottom, width - 10, height - bottom);
  line(left, height - bottom, left, 10);
  line(x(low), y(low), x(high), y(high), { "stroke-dasharray": "4 3" });
  predicted.forEach((value, i) => svg.append(titled(draw("circle", { cx: x(value).toFixed(1), cy: y(measured[i]).toFixed(1), r: 2.6, fill: "var(--method)", "fill-opacity": .65 }),
    `predicted ${text(value)}, measured ${text(measured[i])}`)));
  svg.append(words(text(low), left, height - bottom + 14), words(text(high), width - 10, height - bottom + 14, { "text-anchor": "end" }),
    words(text(high), left - 5, 18, { "text-anchor": "end" }), words(text(low), left - 5, height - bottom, { "text-anchor": "end" }),
    words(`predicted ${content.output}`, (left + width) / 2, height - 6, { "text-anchor": "middle" }),
    words("measured", 14, height / 2, { "text-anchor": "middle", transform: `rotate(-90 14 ${height / 2})` }));
  return svg;
}

// Names of rows without the dotted beginning that all of them share, which would leave no room for what tells them apart;
// where one is still too long its end is kept, which is what differs.
function withoutCommon(names) {
  const parts = names.map(name => name.split(".")), shortest = Math.min(...parts.map(part => part.length));
  let shared = 0;
  while (names.length > 1 && shared < shortest - 1 && parts.every(part => part[shared] === parts[0][shared])) shared++;
  return { prefix: parts.length && shared ? `${parts[0].slice(0, shared).join(".")}.` : "", names: parts.map(part => part.slice(shared).join(".")) };
}
const shortenStart = (name, most) => name.length > most ? `…${name.slice(1 - most)}` : name;
const shorten = (name, most) => name.length > most ? `${name.slice(0, most - 1)}…` : name;

// A map of cells. of: {rows, columns, value(r, c), href(r, c), says(r, c), signed, numbered, cell: [width, height], title}
function heatmap(of) {
  const { prefix, names: rowNames } = withoutCommon(of.rows);
  const [wide, tall] = of.cell ?? [20, 18];
  const left = 8 + 6.3 * Math.min(Math.max(...rowNames.map(name => name.length), 1), 30);
  const longest = Math.min(Math.max(...of.columns.map(name => name.length), 1), 24);
  const upright = longest * 6.5 > wide && !of.numbered, top = upright ? 10 + 6.3 * longest : 18;
  const width = left + wide * of.columns.length + 8, height = top + tall * of.rows.length + 6;
  const svg = frame(width, height, of.title);
  let largest = 0;
  of.rows.forEach((_, r) => of.columns.forEach((_, c) => { const value = of.value(r, c); if (isNumber(value)) largest = Math.max(largest, Math.abs(value)); }));
  const stride = of.numbered ? Math.ceil((longest * 6.5 + 4) / wide) : 1;
  of.columns.forEach((name, c) => {
    if (!upright && c % stride) return;
    const at = left + (c + .5) * wide;
    svg.append(upright ? words(shorten(name, 24), at + 4, top - 5, { transform: `rotate(-90 ${at + 4} ${top - 5})` })
      : words(name, at, top - 5, { "text-anchor": "middle", "font-size": wide < 14 ? 9 : 11 }));
  });
  rowNames.forEach((name, r) => {
    svg.append(titled(words(shortenStart(name, 30), left - 5, top + (r + .5) * tall + 4, { "text-anchor": "end", "font-size": tall < 13 ? 9 : 11 }), of.rows[r]));
    of.columns.forEach((_, c) => {
      const value = of.value(r, c);
      if (!isNumber(value)) return;
      const place = { x: left + c * wide, y: top + r * tall, width: wide - 1, height: tall - 1 };
      const fill = of.signed ? `var(--${sideOf(value)})` : "var(--neutral)";
      const cell = titled(draw("g", {}, draw("rect", { ...place, fill: "var(--card)" }),
        draw("rect", { ...place, fill, "fill-opacity": (largest ? (of.count ? .5 : 1) * (Math.abs(value) / largest) ** .7 : 0).toFixed(3) }),
        of.count ? words(value ? String(value) : "", place.x + wide / 2, place.y + tall / 2 + 4, { "text-anchor": "middle", fill: "var(--ink)" }) : null), of.says(r, c));
      const href = of.href?.(r, c);
      svg.append(href ? draw("a", { href, tabindex: -1 }, cell) : cell);
    });
  });
  return { svg, largest, says: prefix ? ` Names of rows begin with ${prefix}` : "" };
}
const scale = largest => `Blue raises the ${content.output}, orange lowers it; the fullest colour is ${text(largest)}.`;
