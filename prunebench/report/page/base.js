"use strict";
// What all parts of the page use: its data, elements, compressed pieces, sortable tables.
// The files of this folder are joined in the order base, results, paths, text, main. All text goes
// into the page as text (textContent), never as markup. Work that grows with the data is done in
// slices of a few milliseconds, so that nothing blocks.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SLICE_MS = 12;
const BINS = [0.1, 0.3, 0.5, 0.7, 0.9]; // of the probability of the sampled token
const ROWS = 130; // of a table that are shown at first
const SCORES = 8; // columns of the path table at first
const CHUNK_TOKENS = 250, CHUNK_CHARS = 1500; // a chunk of text ends at the next line end
const byId = (id) => document.getElementById(id);
const state = { block: 0, a: 0, b: null, problem: 0, path: null, all: false, scores: false };

function element(tag, text, attributes) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  return made;
}
const say = (text) => { byId("status").textContent = text; };
const frame = () => new Promise((done) => {
  // a page in the background gets no frames
  if (document.hidden) setTimeout(done); else requestAnimationFrame(() => setTimeout(done));
});

/** Calls work(0), work(1), ... and lets the page breathe; stops when valid() is false. */
async function inSlices(n, work, valid) {
  let since = performance.now();
  for (let i = 0; i < n; i++) {
    if (performance.now() - since > SLICE_MS) {
      await frame();
      if (!valid()) return false;
      since = performance.now();
    }
    work(i);
  }
  return true;
}

/** A compressed part of the page. Parts stand behind this script, so the page may be loading. */
async function piece(id) {
  if (!byId(id) && document.readyState === "loading")
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
const cached = new Map(); // small parts: what is chosen goes back and forth
const small = (id) => {
  if (!cached.has(id)) cached.set(id, piece(id));
  return cached.get(id);
};

// ---- sortable tables ------------------------------------------------------------------------
// column: {label, help, words}; row: {cells: [{v, t, node, h, class}], node, class}. v is what
// sorts, t the text (or node instead), h a hint. Cells are made for the rows that are shown.
let tables = 0;
async function table(place, columns, rows, name, after = () => {}) {
  let order = rows, limit = ROWS;
  const made = element("table"), head = element("tr"), body = element("tbody");
  const more = element("button", null, { type: "button" });
  const show = async () => {
    const own = place.dataset.table = String(++tables);
    const top = order.slice(0, limit);
    if (!await inSlices(top.length, (i) => build(top[i], columns), () => place.dataset.table === own)) return false;
    body.replaceChildren(...top.map((row) => row.node));
    more.hidden = top.length === rows.length;
    more.textContent = `${top.length} of ${rows.length} rows: show more`;
    after(top);
    return true;
  };
  columns.forEach((column, i) => {
    const cell = element("th", null, { scope: "col", "aria-sort": "none" });
    if (column.words) cell.className = "words";
    const button = element("button", column.label, { type: "button" });
    if (column.help) button.title = column.help;
    button.addEventListener("click", () => { order = sorted(head, rows, columns, i); show(); });
    cell.append(button);
    head.append(cell);
  });
  more.addEventListener("click", () => { limit += ROWS; show(); });
  made.append(element("thead"), body);
  made.tHead.append(head);
  const box = element("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": name });
  box.append(made);
  if (await show()) place.replaceChildren(box, more);
}

function build(row, columns) {
  row.node = row.node || element("tr");
  if (row.built) return;
  row.built = true;
  if (row.class) row.node.className = row.class;
  row.cells.forEach((cell, j) => {
    const made = element(j === 0 ? "th" : "td");
    if (j === 0) made.scope = "row";
    if (cell.class || columns[j].words) made.className = `${cell.class || ""} ${columns[j].words ? "words" : ""}`.trim();
    if (cell.node) made.append(cell.node); else made.textContent = cell.t ?? cell.v ?? "–";
    if (cell.h) made.title = cell.h;
    row.node.append(made);
  });
}

function sorted(head, rows, columns, i) {
  const heads = [...head.cells];
  const was = heads[i].getAttribute("aria-sort");
  const first = columns[i].words ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = was === first ? other : first;
  heads.forEach((cell, j) => cell.setAttribute("aria-sort", j === i ? order : "none"));
  say(`sorted by ${columns[i].label}, ${order}`);
  const sign = order === "ascending" ? 1 : -1;
  const missing = (v) => v === null || v === undefined;
  return rows.toSorted((x, y) => {
    const [p, q] = [x.cells[i].v, y.cells[i].v];
    if (missing(p) || missing(q)) return missing(p) - missing(q); // the missing come last
    return sign * (typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q);
  });
}
