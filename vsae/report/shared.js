"use strict";
// What both explorers share. Data come as scripts that call vsae.index and vsae.chunk; whatever they hold reaches the document as text, never as markup.

const vsae = { table: null, chunks: new Map(), waiting: new Map() };
vsae.index = (table) => { vsae.table = table; start(); };
vsae.chunk = (number, content) => {
  vsae.chunks.set(number, content);
  (vsae.waiting.get(number) || []).forEach((resolve) => resolve(content));
  vsae.waiting.delete(number);
};
window.vsae = vsae;

const view = { heat: true, opacity: 0.75, smooth: false, size: 132 };
const $ = (id) => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

function load(number) {
  if (vsae.chunks.has(number)) return Promise.resolve(vsae.chunks.get(number));
  return new Promise((resolve, reject) => {
    if (vsae.waiting.has(number)) { vsae.waiting.get(number).push(resolve); return; }
    vsae.waiting.set(number, [resolve]);
    const script = el("script", { src: `data/${vsae.table.files}-${String(number).padStart(5, "0")}.js` });
    script.onerror = () => { vsae.waiting.delete(number); reject(new Error(`${script.getAttribute("src")} is missing: copy the whole folder.`)); };
    document.head.append(script);
  });
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

// ---- the row shown, of a page's `view` ------------------------------------------------------------------------------------

const ROW = 34;

function fromHash() {
  const found = /^#(\d+)$/.exec(location.hash);
  const position = found ? vsae.table.id.indexOf(Number(found[1])) : -1;
  if (position >= 0 && position !== view.at) show(position);
}

function reveal(position) {
  const hash = `#${vsae.table.id[position]}`, place = view.order.indexOf(position), scroller = $("scroller");
  if (location.hash !== hash) history.replaceState(null, "", hash);
  if (place >= 0 && (place * ROW < scroller.scrollTop || (place + 1) * ROW > scroller.scrollTop + scroller.clientHeight)) {
    scroller.scrollTop = Math.max(0, place * ROW - scroller.clientHeight / 2);
  }
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
