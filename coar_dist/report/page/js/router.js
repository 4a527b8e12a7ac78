// One address for every component and example; Back goes back.

const home = document.getElementById("home"), view = document.getElementById("view"), title = document.title;
let homeHash = "", homeScroll = 0;
window.history.scrollRestoration = "manual";

// What stands for letters is read as such; a % that does not, as one that was typed, stays.
function decoded(part) {
  return part.replace(/(%[\da-f]{2})+/gi, letters => { try { return decodeURIComponent(letters); } catch { return letters; } });
}

function goTo(hash) {
  const [name, asked] = hash.split(":");
  if (name === "examples" && asked !== undefined) filterBy(asked);
  const element = name ? document.getElementById(name) : null;
  if (!element) { scrollTo(0, 0); return; }
  for (let box = element; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  if (element.firstElementChild?.tagName === "DETAILS") element.firstElementChild.open = true;
  element.scrollIntoView({ block: "start" });
}

function route() {
  const hash = location.hash.slice(1), wasHome = !home.hidden;
  const component = /^component-(.+)$/s.exec(hash), example = /^example-(.+)$/s.exec(hash);
  if (component || example) {
    if (wasHome) homeScroll = scrollY;
    view.replaceChildren(...(component ? componentPage(decoded(component[1])) : examplePage(decoded(example[1]))).filter(Boolean));
    home.hidden = true;
    view.hidden = false;
    document.title = `${view.querySelector("h1").textContent} · ${title}`;
    scrollTo(0, 0);
    view.focus({ preventScroll: true });
    return;
  }
  view.hidden = true;
  view.replaceChildren();
  home.hidden = false;
  document.title = title;
  if (!wasHome && hash === homeHash) scrollTo(0, homeScroll); else goTo(hash);
  homeHash = hash;
}

overview();
componentTable();
fillFilter();
showExamples();
showMaps();
addEventListener("hashchange", route);
// A link to where one is already goes there once more.
addEventListener("click", event => { const link = event.target.closest?.("a[href^='#']"); if (link && link.getAttribute("href") === location.hash && view.hidden) goTo(location.hash.slice(1)); });
document.documentElement.classList.add("ready");
route();
