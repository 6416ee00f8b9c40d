"use strict";
// The explorer. Data come as scripts that call vsae.index and vsae.chunk; whatever they hold reaches the document as text, never as markup.

const ROW = 34;
const COLUMNS = [
  ["id", "#", "Latent number"],
  ["hint", "top images say", "Commonest label, or distinctive caption words, of the top images"],
  ["density", "density", "Share of tokens the latent is active on"],
  ["images", "images", "Images with at least one active token"],
  ["mean", "mean", "Mean activation where active"],
  ["high", "max", "Largest activation"],
];

const vsae = { table: null, chunks: new Map(), waiting: new Map() };
vsae.index = (table) => { vsae.table = table; start(); };
vsae.chunk = (number, content) => {
  vsae.chunks.set(number, content);
  (vsae.waiting.get(number) || []).forEach((resolve) => resolve(content));
  vsae.waiting.delete(number);
};
window.vsae = vsae;

const view = { order: [], by: "density", down: true, query: "", silent: false, at: -1, heat: true, opacity: 0.75, smooth: false, size: 132 };
const $ = (id) => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

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

function load(number) {
  if (vsae.chunks.has(number)) return Promise.resolve(vsae.chunks.get(number));
  return new Promise((resolve, reject) => {
    if (vsae.waiting.has(number)) { vsae.waiting.get(number).push(resolve); return; }
    vsae.waiting.set(number, [resolve]);
    const script = el("script", { src: `data/latents-${String(number).padStart(5, "0")}.js` });
    script.onerror = () => { vsae.waiting.delete(number); reject(new Error(`${script.getAttribute("src")} is missing: copy the whole folder.`)); };
    document.head.append(script);
  });
}

function fromHash() {
  const found = /^#(\d+)$/.exec(location.hash);
  const position = found ? vsae.table.id.indexOf(Number(found[1])) : -1;
  if (position >= 0 && position !== view.at) show(position);
}

async function show(position) {
  const table = vsae.table, id = table.id[position];
  view.at = position;
  if (location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
  const place = view.order.indexOf(position), scroller = $("scroller");
  if (place >= 0 && (place * ROW < scroller.scrollTop || (place + 1) * ROW > scroller.scrollTop + scroller.clientHeight)) {
    scroller.scrollTop = Math.max(0, place * ROW - scroller.clientHeight / 2);
  }
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

function controls() {
  const slider = (label, name, low, high, step) => {
    const input = el("input", { type: "range" });
    Object.assign(input, { min: low, max: high, step, value: view[name] });
    input.oninput = () => { view[name] = Number(input.value); restyle(); };
    return el("label", {}, label, input);
  };
  const box = (label, name) => {
    const input = el("input", { type: "checkbox", checked: view[name], className: `set-${name}` });
    input.onchange = () => { view[name] = input.checked; restyle(); };
    return el("label", {}, input, ` ${label}`);
  };
  restyle();
  const parts = vsae.table.grid ? [box("heat map", "heat"), slider("opacity ", "opacity", 0, 1, 0.05), box("smooth", "smooth")] : [box("heat map", "heat")];
  return el("div", { className: "controls" }, ...parts, slider("size ", "size", 72, 320, 4));
}

function restyle() {
  const style = document.documentElement.style;
  style.setProperty("--opacity", view.heat ? view.opacity : 0);
  style.setProperty("--size", `${view.size}px`);
  document.body.classList.toggle("smooth", view.smooth);
  document.querySelectorAll(".set-heat").forEach((input) => { input.checked = view.heat; });
}

// ---- pictures and their heat maps -------------------------------------------------------------------------------------

function figure([sample, value, packed], samples) {
  const [source, key, label, caption] = samples[sample], cells = unpack(packed), words = [label, caption].filter(Boolean).join(" · ");
  const frame = el("div", { className: "frame" }, picture(source, key), ...heatMap(cells), ...badges(cells));
  const tile = el("figure", { tabIndex: 0, title: [words, key].filter(Boolean).join("\n") }, frame, el("figcaption", {}, el("b", {}, number(value)), " ", el("span", {}, words)));
  tile.onclick = () => enlarge(frame, value, samples[sample]);
  tile.onkeydown = (event) => { if (event.key === "Enter") tile.onclick(); };
  return tile;
}

function picture(source, key) {
  if (source === 0) return el("div", { className: "missing" }, "no picture");
  const image = el("img", { src: source, alt: key, loading: "lazy", decoding: "async" });
  image.onerror = () => image.replaceWith(el("div", { className: "missing" }, "no picture"));
  return image;
}

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), cells = [];
  for (let at = 0; at < bytes.length; at += 3) cells.push([bytes[at] + 256 * bytes[at + 1], ((bytes[at + 2] << 24) >> 24) / 127]);
  return cells;
}

function heatMap(cells) {
  const grid = vsae.table.grid, [rows, columns] = grid || [1, vsae.table.tokens_per_sample];
  if (rows * columns === 1) return [];
  const canvas = el("canvas", { width: columns, height: rows, className: grid ? "heat" : "heat strip" }), context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) pixels.data.set([12, 14, 24, 150], 4 * i);
  for (const [cell, level] of cells) if (cell < rows * columns) pixels.data.set(colour(level), 4 * cell);
  context.putImageData(pixels, 0, 0);
  return [canvas];
}

function colour(level) {
  const strength = Math.sqrt(Math.abs(level)), mix = (a, b) => Math.round(a + (b - a) * strength);
  const rgb = level > 0 ? [255, mix(170, 70), mix(60, 0)] : [mix(60, 0), mix(170, 110), 255];
  return [...rgb, Math.round(255 * (0.08 + 0.62 * strength))];
}

// Tokens that lie on no grid: class token, registers, text beside an image.
function badges(cells) {
  const grid = vsae.table.grid, strongest = new Map();
  if (!grid) return [];
  for (const [cell, level] of cells) {
    const kind = vsae.table.kinds[cell - grid[0] * grid[1]];
    if (kind && Math.abs(level) > Math.abs(strongest.get(kind) || 0)) strongest.set(kind, level);
  }
  return strongest.size ? [el("div", { className: "badges" }, ...[...strongest].map(([kind, level]) => el("span", { title: "Share of the latent's own maximum" }, `${kind} ${Math.round(100 * level)}%`)))] : [];
}

function enlarge(frame, value, [, key, label, caption]) {
  const large = $("large"), copy = frame.cloneNode(true), from = frame.querySelector("canvas"), to = copy.querySelector("canvas");
  if (from) to.getContext("2d").drawImage(from, 0, 0);
  const close = el("button", { type: "button" }, "Close");
  close.onclick = () => large.close();
  large.onclick = (event) => { if (event.target === large) large.close(); };
  large.replaceChildren(copy, el("p", {}, el("b", {}, number(value)), " ", label), el("p", {}, caption), el("p", { className: "quiet" }, key), close);
  large.showModal();
}

// ---- numbers ----------------------------------------------------------------------------------------------------------

function number(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 0.01 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function percent(value) {
  if (value === 0) return "0";
  return value >= 1e-4 ? `${Number((100 * value).toPrecision(2))}%` : `${(100 * value).toExponential(0)}%`;
}
