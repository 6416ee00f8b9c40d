"use strict";
// The explorer of an audit's concepts; shared.js has what it does with data and pictures.

const COLUMNS = [
  ["id", "#", "Concept number"],
  ["name", "name", "CLIP's nearest word; ? where it is no nearer than to random images"],
  ["verdict", "verdict", "What the concept was found to be"],
  ["relative", "change", "Relative difference: -1 gone, 0 unchanged, +1 new"],
  ["q", "q", "False discovery rate at which it would be found"],
  ["real", "energy", "Mean activation a token in real images"],
];
const TEXT = ["name", "verdict"];
Object.assign(view, { order: [], by: "change", down: true, query: "", generator: 0, effect: 0, p: 1, energy: 0, verdicts: new Set(), at: -1 });

const mine = () => vsae.table.generators[view.generator];
const verdictOf = (position, generator = mine()) => vsae.table.verdicts[generator.verdict[position]]?.[0] ?? "silent";
const known = (value, or) => (value === null ? or : value);

// ---- what is listed -------------------------------------------------------------------------------------------------

function start() {
  const table = vsae.table;
  for (const [name, label, tip] of COLUMNS) {
    const head = el("button", { type: "button", className: `cell ${name}`, title: `${tip}. Click to sort.` }, label);
    head.dataset.column = name;
    head.onclick = () => { view.down = view.by === name ? !view.down : !["id", "q", ...TEXT].includes(name); view.by = name; arrange(); };
    $("columns").append(head);
  }
  $("generator").replaceChildren(...table.generators.map((each, i) => el("option", { value: String(i) }, each.name)));
  $("generator").onchange = () => { view.generator = Number($("generator").value); arrange(); show(view.at); };
  table.verdicts.forEach(([name, text], i) => {
    const input = el("input", { type: "checkbox", checked: true });
    view.verdicts.add(i);
    input.onchange = () => { if (input.checked) view.verdicts.add(i); else view.verdicts.delete(i); arrange(); };
    $("verdicts").append(el("label", { title: text }, input, name, el("small", {})));
  });
  const energies = [...table.real].map((value) => known(value, 0)).sort((a, b) => a - b);
  const quantile = (share) => (share === 0 ? 0 : energies[Math.min(energies.length - 1, Math.floor(share * energies.length))]);
  const slider = (id, read) => {
    const move = () => { view[id] = read(Number($(id).value)); $(`${id}-value`).textContent = number(view[id]); arrange(); };
    $(id).oninput = move;
    view[id] = read(Number($(id).value));
    $(`${id}-value`).textContent = number(view[id]);
  };
  slider("effect", (value) => value);
  slider("p", (value) => (value === 0 ? 1 : 10 ** value));
  slider("energy", (value) => quantile(value / 100));
  $("search").oninput = () => { view.query = $("search").value; arrange(); };
  $("scroller").onscroll = paintRows;
  window.onresize = () => { paintRows(); paintMap(); };
  window.onhashchange = fromHash;
  document.addEventListener("keydown", keyboard);
  $("map").onclick = (event) => { const at = nearest(event); if (at >= 0) show(at); };
  $("map").onmousemove = (event) => { const at = nearest(event); under(at < 0 ? view.at : at); };
  $("map").onmouseleave = () => under(view.at);
  matchMedia("(prefers-color-scheme: dark)").onchange = paintMap;
  arrange();
  fromHash();
  if (view.at < 0 && view.order.length) show(view.order[0]);
}

function passes(position, words) {
  const table = vsae.table, each = mine();
  if (each.verdict[position] < 0 || !view.verdicts.has(each.verdict[position])) return false;
  if (Math.abs(known(each.relative[position], 0)) < view.effect || known(each.p[position], 1) > view.p || known(table.real[position], 0) < view.energy) return false;
  const said = `${table.name[position]} ${table.others[position].join(" ")} ${verdictOf(position)}`.toLowerCase();
  return words.every((word) => /^#?\d+$/.test(word)
    ? [table.id[position], ...table.latents[position]].map(String).includes(word.replace("#", ""))
    : said.includes(word));
}

function value(position, column) {
  const table = vsae.table;
  // What was found before what was not: rare concepts change most by chance.
  if (column === "change") return Math.abs(known(mine().relative[position], -1)) + (side(position) ? 2 : 0);
  if (column === "verdict") return mine().verdict[position];
  const found = (column in table ? table : mine())[column][position];
  return found === null ? Infinity : found;
}

const energy = (position) => known(vsae.table.real[position], 0) + known(mine().generated[position], 0);

function arrange() {
  const table = vsae.table, words = view.query.toLowerCase().split(/\s+/).filter(Boolean), sign = view.down ? -1 : 1;
  view.order = table.id.map((_, position) => position).filter((position) => passes(position, words));
  view.order.sort((a, b) => {
    const first = value(a, view.by), second = value(b, view.by);
    if (view.by === "name" && (first === "") !== (second === "")) return first === "" ? 1 : -1;
    return (first < second ? -sign : first > second ? sign : 0) || energy(b) - energy(a) || a - b;
  });
  view.listed = new Set(view.order);
  for (const head of $("columns").children) head.setAttribute("aria-sort", head.dataset.column === view.by ? (view.down ? "descending" : "ascending") : "none");
  [...$("verdicts").children].forEach((label, i) => { label.lastChild.textContent = mine().verdict.filter((each) => each === i).length.toLocaleString("en"); });
  $("rows").style.height = `${view.order.length * ROW}px`;
  $("count").textContent = `${view.order.length.toLocaleString("en")} of ${table.id.length.toLocaleString("en")} concepts listed · ↑ ↓ move, / search, h heat map`;
  paintRows();
  paintMap();
}

function paintRows() {
  const scroller = $("scroller"), first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 4);
  const last = Math.min(view.order.length, first + Math.ceil(scroller.clientHeight / ROW) + 8);
  $("rows").replaceChildren(...view.order.slice(first, last).map((position, i) => {
    const table = vsae.table, each = mine(), line = el("div", { className: "line", role: "option" });
    line.style.top = `${(first + i) * ROW}px`;
    line.setAttribute("aria-selected", position === view.at);
    const cells = { id: String(table.id[position]), name: table.name[position], verdict: verdictOf(position), relative: signed(each.relative[position]),
      q: shown(each.q[position]), real: shown(table.real[position]) };
    for (const [name] of COLUMNS) line.append(el("span", { className: `cell ${name} ${name === "relative" ? side(position) : ""}` }, cells[name]));
    line.onclick = () => show(position);
    return line;
  }));
}

const shown = (found) => (found === null ? "–" : number(found));
const signed = (found) => (found === null ? "–" : `${found > 0 ? "+" : ""}${found.toFixed(2)}`);
const side = (position, each = mine()) => ({ suppressed: "less", exaggerated: "more" }[verdictOf(position, each)] || "");

function keyboard(event) {
  const typing = event.target.id === "search", steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10 };
  if (event.ctrlKey || event.metaKey || event.altKey || $("large").open) return;
  if (event.key === "/" && !typing) { event.preventDefault(); $("search").select(); $("search").focus(); return; }
  if (event.key === "Escape" && typing) { $("search").blur(); return; }
  if (event.target.type === "range" || event.target.tagName === "SELECT" || (typing && event.key.length === 1)) return;
  if (event.key === "h") { view.heat = !view.heat; restyle(); return; }
  if (event.key in steps && view.order.length) {
    event.preventDefault();
    const place = view.order.indexOf(view.at);
    show(view.order[Math.min(view.order.length - 1, Math.max(0, place < 0 ? 0 : place + steps[event.key]))]);
  }
}

// ---- the map --------------------------------------------------------------------------------------------------------

const EDGE = 10;

function spot(position) {
  const box = $("map"), table = vsae.table;
  return [EDGE + table.x[position] * (box.clientWidth - 2 * EDGE), EDGE + (1 - table.y[position]) * (box.clientHeight - 2 * EDGE)];
}

function paintMap() {
  const box = $("map"), scale = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  box.width = box.clientWidth * scale;
  box.height = box.clientHeight * scale;
  const context = box.getContext("2d"), colours = { less: style.getPropertyValue("--less"), more: style.getPropertyValue("--more"), "": style.getPropertyValue("--none") };
  context.scale(scale, scale);
  const dot = (position, alpha) => {
    const [x, y] = spot(position);
    context.globalAlpha = alpha;
    context.fillStyle = colours[side(position)];
    context.beginPath();
    context.arc(x, y, side(position) ? 4 : 2.5, 0, 7);
    context.fill();
  };
  vsae.table.id.forEach((_, position) => { if (!view.listed.has(position)) dot(position, 0.12); });
  [...view.order].sort((a, b) => (side(a) !== "") - (side(b) !== "")).forEach((position) => dot(position, 0.85));
  if (view.at >= 0) {
    const [x, y] = spot(view.at);
    context.globalAlpha = 1;
    context.strokeStyle = style.getPropertyValue("--ink");
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x, y, 8, 0, 7);
    context.stroke();
  }
  under(view.at);
}

function nearest(event) {
  const box = $("map").getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
  let best = -1, distance = 18 ** 2;
  for (const position of view.order) {
    const [x, y] = spot(position), mineToo = (x - at[0]) ** 2 + (y - at[1]) ** 2;
    if (mineToo < distance) { best = position; distance = mineToo; }
  }
  return best;
}

function under(position) {
  const about = position < 0 ? "" : `${title(position)}: ${verdictOf(position)} ${signed(mine().relative[position])}`;
  $("under").textContent = about || "Alike atoms lie side by side (t-SNE); far ones say nothing.";
}

const title = (position) => `Concept ${vsae.table.id[position]}${vsae.table.name[position] ? ` · ${vsae.table.name[position]}` : ""}`;

// ---- one concept ----------------------------------------------------------------------------------------------------

async function show(position) {
  if (position < 0) return;
  const table = vsae.table, id = table.id[position];
  view.at = position;
  reveal(position);
  paintRows();
  paintMap();
  try {
    const chunk = await load(Math.floor(position / table.chunk));
    if (view.at === position) $("latent").replaceChildren(...detail(position, chunk.concepts[id], chunk.samples));
  } catch (error) {
    if (view.at === position) $("latent").replaceChildren(el("p", { className: "quiet" }, error.message));
  }
}

function detail(position, sets, samples) {
  const table = vsae.table, others = table.others[position], said = verdictOf(position);
  const nearby = others.length ? `then ${others.join(", ")} · cosine ${shown(table.cosine[position])}, ${shown(table.margin[position])} more than the second` : table.unnamed;
  const tiles = (which) => {
    const name = which === 0 ? `real (${table.images.toLocaleString("en")} images)` : `${table.sets[which]} (${table.generators[which - 1].images.toLocaleString("en")} images)`;
    const body = sets[which].length ? el("div", { className: "tiles" }, ...sets[which].map((tile) => figure(tile, samples[which]))) : el("p", { className: "quiet" }, "Active on none of these images.");
    return el("section", {}, el("h3", {}, name), body);
  };
  const chosen = [0, view.generator + 1], rest = table.sets.map((_, i) => i).filter((i) => !chosen.includes(i));
  return [
    el("div", { className: "title" }, el("h2", {}, title(position)), el("span", { className: `hint ${side(position)}` }, said)),
    el("p", { className: "quiet" }, `latent ${table.latents[position].join(", ")} · ${nearby}`),
    el("p", { className: "verdict-text" }, (table.verdicts.find(([name]) => name === said) || ["", ""])[1]),
    el("div", { className: "wide" }, evidence(position)),
    el("p", { className: "quiet" }, `Floor: of two random halves of the real images, ${(100 * table.null).toFixed(1)}% of the concepts differ. False discovery rate ${table.alpha}; least change ${table.least_change}.`),
    controls(),
    el("div", { className: "sides" }, ...chosen.map(tiles)),
    ...(rest.length ? [el("div", { className: "sides" }, ...rest.map(tiles))] : []),
  ];
}

function evidence(position) {
  const heads = ["generator", "verdict", "energy, real", "generated", "change", "95 % interval", "p", "q", "delta", "detection limit"];
  const rows = vsae.table.generators.map((each, i) => {
    const get = (name) => each[name][position], between = get("low") === null ? "–" : `${signed(get("low"))} to ${signed(get("high"))}`;
    const cells = [each.name, verdictOf(position, each), shown(vsae.table.real[position]), shown(get("generated")), signed(get("relative")), between,
      shown(get("p")), shown(get("q")), shown(get("delta")), shown(get("limit"))];
    const row = el("tr", {}, ...cells.map((cell) => el("td", {}, cell)));
    row.setAttribute("aria-current", i === view.generator);
    return row;
  });
  return el("table", { className: "evidence" }, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows));
}
