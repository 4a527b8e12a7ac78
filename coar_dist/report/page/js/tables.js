// Tables: sorted by a click on a head, and downloaded.

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  const valueOf = (line, i) => line.cells[i].dataset.value ?? line.cells[i].textContent.trim();
  heads.forEach((head, i) => head.firstElementChild?.addEventListener("click", () => {
    const lines = [...table.tBodies[0].rows].map(line => [line, valueOf(line, i)]);
    const number = value => Number(value.replace(/[,%×]/g, "").replace("−", "-"));
    const isNothing = value => value === "nan" || value === "-" || value === "–" || value === "";
    const numeric = lines.some(([, value]) => !isNothing(value)) && lines.every(([, value]) => isNothing(value) || !Number.isNaN(number(value)));
    const before = head.getAttribute("aria-sort");
    const down = before === "none" ? numeric : before === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = numeric
      ? (a, b) => isNothing(a[1]) || isNothing(b[1]) ? isNothing(a[1]) - isNothing(b[1]) : (down ? -1 : 1) * (number(a[1]) - number(b[1]))
      : (a, b) => (down ? -1 : 1) * a[1].localeCompare(b[1], undefined, { numeric: true });
    table.tBodies[0].append(...lines.sort(compare).map(([line]) => line));
  }));
}

// What a table shows; numbers in full, and half of an interval in a column of its own.
function cellsOf(table) {
  const lines = [...table.rows];
  const width = Math.max(...lines.map(line => line.cells.length));
  const hasHalf = Array.from({ length: width }, (_, i) => lines.some(line => line.cells[i]?.dataset.half));
  return lines.map(line => [...line.cells].flatMap((cell, i) => {
    const isHead = cell.closest("thead") !== null;
    const value = cell.dataset.value ?? cell.textContent.trim();
    return hasHalf[i] ? [value, isHead ? `${value}, ±` : cell.dataset.half ?? ""] : [value];
  }));
}

for (const table of document.querySelectorAll("table")) {
  if (table.tHead) sortable(table);
  table.parentElement.after(make("div", { className: "tools" }, csvButton(table.dataset.name, () => cellsOf(table))));
}
document.querySelectorAll(".scroll").forEach(scrolls);
for (const figure of document.querySelectorAll("figure.drawn")) {
  figure.lastElementChild.append(" ", ...figureButtons(figure.dataset.name, figure.querySelector("svg")));
}

// A table of rows that are made as they are shown.
// columns: {name, value(row), size(row)?, cell(row)?, text: bool, title}; value is downloaded, and sorts where there is
// no size; cell is shown.
// sort is a column, or null for rows that come in their order.
function tableOf(name, columns, rows, { sort = 0, down = true, page = 50 } = {}) {
  let shown = page, order = rows;
  const body = make("tbody");
  const more = button("", () => { shown += 4 * page; fill(); }, { className: "more" });
  const heads = columns.map((column, i) => {
    const head = make("th", { scope: "col", className: column.text ? "" : "n", title: column.title ?? "" },
      button(column.name, () => { down = sort === i ? !down : !column.text; sort = i; shown = page; arrange(); }, { className: "" }));
    head.setAttribute("aria-sort", "none");
    return head;
  });
  const table = make("table", { data: { name } }, make("thead", {}, make("tr", {}, ...heads)), body);
  function fill() {
    body.replaceChildren(...order.slice(0, shown).map(of => make("tr", {}, ...columns.map(column =>
      column.cell ? column.cell(of) : make("td", { className: column.text ? "" : "n", textContent: column.text ? column.value(of) : text(column.value(of)) })))));
    more.textContent = `${(order.length - shown).toLocaleString("en")} more`;
    more.hidden = order.length <= shown;
  }
  function arrange() {
    if (sort === null) { fill(); return; }
    const value = columns[sort].size ?? columns[sort].value, sign = down ? -1 : 1;
    const compare = columns[sort].text ? (a, b) => String(value(a)).localeCompare(String(value(b)), undefined, { numeric: true })
      : (a, b) => value(a) - value(b);
    const isNothing = of => !columns[sort].text && !isNumber(value(of));
    order = [...order].sort((a, b) => isNothing(a) || isNothing(b) ? isNothing(a) - isNothing(b) : sign * compare(a, b));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== sort ? "none" : down ? "descending" : "ascending"));
    fill();
  }
  const csv = csvButton(name, () => [columns.map(column => column.name), ...order.map(of => columns.map(column => column.value(of)))], () => order.length < rows.length);
  arrange();
  const box = make("div", { className: "tabled" }, scroller(table), make("div", { className: "tools" }, more, csv));
  box.keep = wanted => { order = wanted; shown = page; arrange(); };
  return box;
}
