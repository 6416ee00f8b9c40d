"use strict";
// The explorer of latents; shared.js has what it does with data and pictures.

const COLUMNS = [
  ["id", "#", "Latent number"],
  ["hint", "top images say", "Commonest label, or distinctive caption words, of the top images"],
  ["density", "density", "Share of tokens the latent is active on"],
  ["images", "images", "Images with at least one active token"],
  ["mean", "mean", "Mean activation where active"],
  ["high", "max", "Largest activation"],
];

Object.assign(view, { order: [], by: "density", down: true, query: "", silent: false, at: -1 });
// ---- the table ------------------------------------------------------------------------------------------------------

function start() {
  for (const [name, label, tip] of COLUMNS) {
    const head = el("button", { type: "button", className: `cell ${name}`, title: `${tip}. Click to sort.` }, label);
    head.dataset.column = name;
    head.onclick = () => { view.down = view.by === name ? !view.down : name !== "id" && name !== "hint"; view.by = name; arrange(); };
    $("columns").append(head);
  }
  $("search").oninput = () => { view.query = $("search").value; arrange(); };
  $("silent").onchange = () => { view.silent = $("silent").checked; arrange(); };
  $("scroller").onscroll = paintRows;
  window.onresize = paintRows;
  window.onhashchange = fromHash;
  document.addEventListener("keydown", keyboard);
  arrange();
  fromHash();
  if (view.at < 0 && view.order.length) show(view.order[0]);
}

function matches(position, words) {
  const table = vsae.table;
  if (!view.silent && table.images[position] === 0) return false;
  return words.every((word) => /^#?\d+$/.test(word)
    ? String(table.id[position]) === word.replace("#", "")
    : table.hint[position].toLowerCase().includes(word));
}

function arrange() {
  const table = vsae.table, words = view.query.toLowerCase().split(/\s+/).filter(Boolean);
  view.order = table.id.map((_, position) => position).filter((position) => matches(position, words));
  const column = table[view.by], sign = view.down ? -1 : 1;
  const compare = view.by === "hint"
    ? (a, b) => (column[a] === "") - (column[b] === "") || sign * (column[a] < column[b] ? -1 : column[a] > column[b] ? 1 : 0)
    : (a, b) => sign * (column[a] - column[b]);
  view.order.sort((a, b) => compare(a, b) || a - b);
  for (const head of $("columns").children) {
    const mine = head.dataset.column === view.by;
    head.setAttribute("aria-sort", mine ? (view.down ? "descending" : "ascending") : "none");
  }
  $("rows").style.height = `${view.order.length * ROW}px`;
  const live = table.images.filter((n) => n > 0).length;
  $("count").textContent = `${view.order.length.toLocaleString("en")} listed · ${live.toLocaleString("en")} active of ${table.id.length.toLocaleString("en")} · ↑ ↓ move, / search, h heat map`;
  paintRows();
}

function paintRows() {
  const scroller = $("scroller"), first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 4);
  const last = Math.min(view.order.length, first + Math.ceil(scroller.clientHeight / ROW) + 8);
  $("rows").replaceChildren(...view.order.slice(first, last).map((position, i) => {
    const table = vsae.table, line = el("div", { className: "line", role: "option" });
    line.style.top = `${(first + i) * ROW}px`;
    line.setAttribute("aria-selected", position === view.at);
    for (const [name] of COLUMNS) {
      const value = table[name][position];
      const cell = el("span", { className: `cell ${name}` }, name === "density" ? percent(value) : name === "id" ? String(value) : name === "hint" ? value : number(value));
      if (name === "density" && value > 0) {
        const bar = el("i", { className: "bar" });
        bar.style.width = `${Math.max(2, 100 * (1 + Math.log10(value) / Math.log10(vsae.table.rows + 1)))}%`;
        cell.append(bar);
      }
      line.append(cell);
    }
    if (table.images[position] === 0) line.classList.add("dead");
    line.onclick = () => show(position);
    return line;
  }));
}

function keyboard(event) {
  const typing = event.target.id === "search", steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10 };
  if (event.ctrlKey || event.metaKey || event.altKey || $("large").open) return;
  if (event.key === "/" && !typing) { event.preventDefault(); $("search").select(); $("search").focus(); return; }
  if (event.key === "Escape" && typing) { $("search").blur(); return; }
  if (event.target.type === "range" || (typing && event.key.length === 1)) return;
  if (event.key === "h") { view.heat = !view.heat; restyle(); return; }
  if (event.key in steps && view.order.length) {
    event.preventDefault();
    const place = view.order.indexOf(view.at);
    show(view.order[Math.min(view.order.length - 1, Math.max(0, place < 0 ? 0 : place + steps[event.key]))]);
  }
}

// ---- one latent -----------------------------------------------------------------------------------------------------

async function show(position) {
  const table = vsae.table, id = table.id[position];
  view.at = position;
  reveal(position);
  paintRows();
  try {
    const chunk = await load(Math.floor(position / table.chunk));
    if (view.at === position) $("latent").replaceChildren(...detail(position, chunk.latents[id], chunk.samples));
  } catch (error) {
    if (view.at === position) $("latent").replaceChildren(el("p", { className: "quiet" }, error.message));
  }
}

function detail(position, latent, samples) {
  const table = vsae.table, tiles = (list) => el("div", { className: "tiles" }, ...list.map((tile) => figure(tile, samples)));
  const section = (title, note, body) => el("section", {}, el("h3", {}, title, note ? el("small", {}, note) : ""), body);
  const head = el("div", { className: "title" }, el("h2", {}, `Latent ${table.id[position]}`), el("span", { className: "hint" }, table.hint[position]));
  if (table.images[position] === 0) {
    return [head, el("p", { className: "quiet" }, "Silent: active on none of this page's tokens."), section("Nearest atoms", chanceOf(latent.near, "chance of the best about"), chips(latent.near))];
  }
  const facts = [
    ["density", percent(table.density[position])], ["images", number(table.images[position])],
    ["mean", number(table.mean[position])], ["max", number(table.high[position])],
    ...(table.low[position] < 0 ? [["min", number(table.low[position])]] : []),
  ];
  return [
    head,
    el("div", { className: "summary" },
      el("dl", { className: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
      histogram(latent.histogram, Math.min(table.low[position], 0), Math.max(table.high[position], 0))),
    controls(),
    latent.top.length ? section("Strongest", "by the strongest token of each image", tiles(latent.top)) : "",
    latent.bottom.length ? section("Most negative", "the other pole of a signed code", tiles(latent.bottom)) : "",
    section("Drawn at random", latent.random.length ? "among all other images it is active on" : "it is active on no other image", tiles(latent.random)),
    el("div", { className: "two" },
      section("Nearest atoms", chanceOf(latent.near, "cosine; best of random directions about"), chips(latent.near)),
      section("Fires together with", latent.with.length ? "Jaccard over tokens, and how often more than chance" : "no latent shares three tokens with it", chips(latent.with, true))),
  ].filter((node) => node !== "");
}

const chanceOf = (list, words) => (list.length ? `${words} ${number(list[0][2])}` : "");

function chips(list, ratio = false) {
  return el("div", { className: "chips" }, ...list.map(([id, score, chance]) => {
    const position = vsae.table.id.indexOf(id), known = position >= 0;
    const chip = el("a", { className: "chip" }, el("b", {}, `${id}`), el("span", {}, known ? vsae.table.hint[position] : "not on this page"),
      el("em", {}, score.toFixed(2)), ratio ? el("small", {}, `${number(score / Math.max(chance, 1e-9))}×`) : "");
    if (known) chip.href = `#${id}`;
    return chip;
  }));
}

function histogram(counts, low, high) {
  const box = el("div", { className: "histogram", title: "Active tokens by activation; heights are logarithmic" }), top = Math.log1p(Math.max(...counts, 1));
  const bars = el("div", { className: "bars" }, ...counts.map((count, i) => {
    const bar = el("i", { title: `${number(low + (high - low) * i / counts.length)} to ${number(low + (high - low) * (i + 1) / counts.length)}: ${number(count)} tokens` });
    bar.style.height = `${count ? Math.max(3, 100 * Math.log1p(count) / top) : 0}%`;
    return bar;
  }));
  box.append(bars, el("div", { className: "axis" }, el("span", {}, number(low)), el("span", {}, "activation, tokens on a log scale"), el("span", {}, number(high))));
  return box;
}
