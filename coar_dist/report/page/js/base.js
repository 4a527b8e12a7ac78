// Elements, numbers and downloads. All text goes in by textContent.

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

const isNumber = value => typeof value === "number" && Number.isFinite(value);

// Three significant digits, with a true minus; "sign" writes plus signs, too.
function text(value, sign = false) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  let shown = size >= 1000 ? Math.round(size).toLocaleString("en") : size === 0 ? "0" : size < 1e-4 ? size.toExponential(1)
    : size.toFixed(Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 5));
  return (value < 0 ? "−" : sign && value > 0 ? "+" : "") + shown;
}

// Values to the last digit that an error of two digits leaves.
function withError(value, error) {
  if (!isNumber(error) || error <= 0) return [text(value), text(error)];
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(error)), 0), 6);
  return [value, error].map(of => of.toFixed(digits).replace("-", "−"));
}

const signed = value => text(value, true);
const correlation = value => isNumber(value) ? value.toFixed(2).replace("-", "−") : "undefined";
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const percentOf = fraction => `${Number((100 * fraction).toPrecision(3))}%`; // of a number that was chosen
const percent = value => isNumber(value) ? `${(100 * value).toFixed(1)}%` : "–";

// The inverse of encoding.py.
function unpack(packed) {
  if (!packed) return null;
  const types = { i8: Int8Array, i16: Int16Array, u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
  const of = (content, type) => new types[type](Uint8Array.from(atob(content), letter => letter.charCodeAt(0)).buffer);
  const whole = of(packed.b, packed.t);
  if (!packed.s) return whole;
  const scales = of(packed.s, "f32"), width = whole.length / (scales.length || 1);
  const nothing = packed.t === "i8" ? -128 : -32768;
  return Float32Array.from(whole, (value, i) => value === nothing ? NaN : value * scales[Math.floor(i / width)]);
}

const row = (array, i, width) => Array.from(array.subarray(i * width, (i + 1) * width));

function download(name, content) {
  const address = URL.createObjectURL(content);
  const run = document.querySelector("h1").textContent.replace(/[^\w.-]+/g, "-");
  const link = make("a", { href: address, download: `${run}-${name.replace(/[^\w.-]+/g, "-")}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function button(label, act, properties = {}) {
  const made = make("button", { type: "button", className: "small", textContent: label, ...properties });
  made.addEventListener("click", act);
  return made;
}

// Rows of texts and numbers as a file; isPart() says whether these are some of all rows, which its name then says, too.
function csvButton(name, rowsOf, isPart = () => false) {
  const cell = value => {
    const shown = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\n\r]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
  };
  return button("CSV", () => {
    const lines = rowsOf().map(cells => cells.map(cell).join(","));
    download(`${name}${isPart() ? "-found" : ""}.csv`, new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  }, { title: `Download this table: ${name}` });
}

// An SVG element as a file of its own: colours of the page as they are now, on the page's paper.
function fileOf(svg) {
  const style = getComputedStyle(document.documentElement), box = svg.viewBox.baseVal;
  const copy = svg.cloneNode(true);
  for (const link of copy.querySelectorAll("a")) link.replaceWith(...link.childNodes);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  copy.style.fontFamily = "sans-serif";
  copy.prepend(draw("rect", { x: box.x, y: box.y, width: box.width, height: box.height, fill: "var(--paper)" }));
  return new XMLSerializer().serializeToString(copy)
    .replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim())
    .replaceAll("currentColor", style.getPropertyValue("--ink").trim());
}

function figureButtons(name, svg) {
  const asImage = () => {
    const image = new Image(), box = svg.viewBox.baseVal, scale = 2;
    image.onload = () => {
      const canvas = make("canvas", { width: box.width * scale, height: box.height * scale });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(content => download(`${name}.png`, content));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(fileOf(svg))}`;
  };
  const asSvg = () => download(`${name}.svg`, new Blob([fileOf(svg)], { type: "image/svg+xml" }));
  return [button("SVG", asSvg, { title: `Download this figure: ${name}` }), button("PNG", asImage, { title: `Download this figure: ${name}` })];
}

// A box that scrolls sideways, with a shadow at the side where there is more.
function scrolls(box) {
  const update = () => {
    if (!box.clientWidth) return; // not shown: what it says then stays, so that what is below stays where it is
    box.classList.toggle("is-wide", box.clientWidth < box.scrollWidth - 2);
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.classList.toggle("more-left", box.scrollLeft > 2);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  for (const child of box.children) new ResizeObserver(update).observe(child);
  box.tabIndex = 0;
  return box;
}
const scroller = (...children) => scrolls(make("div", { className: "scroll" }, ...children));
