// The strongest components of the run, and whom they matter for.

function overview() {
  const strongest = rows.slice(0, 8).filter(i => C.strength[i] > 0), place = document.getElementById("strongest");
  if (!strongest.length) { place.append(make("p", { className: "note", textContent: "All weights are 0." })); return; }
  const largest = Math.max(...strongest.map(i => Math.abs(C.mean[i])), 1e-30);
  const classes = content.groupings.findIndex(grouping => grouping.name === "class");
  function mattersFor(i) {
    const means = classes >= 0 ? meansOf(i, classes).filter(([, mean]) => isNumber(mean)).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 2) : [];
    return make("span", { className: "classes" }, ...means.map(([name, mean]) => make("span", { className: "class" }, shorten(groupWord(classes, name), 24), " ", make("b", { className: sideOf(mean), textContent: signed(mean) }))));
  }
  function few(i) {
    const found = [...row(C.raised, i, gallery).map((id, k) => [id, row(C.raised_by, i, gallery)[k]]), ...row(C.lowered, i, gallery).map((id, k) => [id, row(C.lowered_by, i, gallery)[k]])]
      .filter(([id, weight]) => weight !== 0 && placeOf.has(id)).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3);
    return found.map(([id, weight]) => make("a", { href: `#example-${id}`, className: "thumb", title: `example ${id}: ${signed(weight)}` },
      content.images[id] ? pictureOf(id) : null, make("span", { className: sideOf(weight), textContent: content.images[id] ? signed(weight) : `${id}: ${signed(weight)}` })));
  }
  const head = ["component", "mean effect", "mean |effect|", ...(classes >= 0 ? ["most on classes"] : []), "most on examples"];
  place.append(scroller(make("table", { className: "strongest", data: { name: "strongest components" } },
    make("thead", {}, make("tr", {}, ...head.map((name, k) => make("th", { scope: "col", className: k === 1 || k === 2 ? "n" : "", textContent: name })))),
    make("tbody", {}, ...strongest.map(i => make("tr", {}, make("td", {}, componentLink(C.ids[i]), make("span", { className: "note kind", textContent: groupOf(C.ids[i]).kind })),
      barCell(C.mean[i], largest), make("td", { className: "n", textContent: text(C.strength[i]) }), ...(classes >= 0 ? [make("td", {}, mattersFor(i))] : []), make("td", {}, make("span", { className: "thumbs" }, ...few(i)))))))));
  place.append(make("div", { className: "tools" }, csvButton("strongest components", () => [["component", "kind", "mean effect", "mean |effect|"], ...strongest.map(i => [C.names[i], groupOf(C.ids[i]).kind, C.mean[i], C.strength[i]])])));
}
