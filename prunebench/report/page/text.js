// The text of one path, in chunks that are coloured when they come near.

let opener = null, watcher = null, opening = 0;

async function openPath(index, from, focus = true) {
  const { paths, rows, problem, block } = shown;
  const path = paths.find((p) => p.index === index);
  const own = ++opening, valid = () => own === opening;
  if (!path) return;
  opener = rows.get(index)?.button || from;
  rove(opener);
  for (const [i, row] of rows) row.node.classList.toggle("open", i === index);
  state.path = index;
  byId("viewer").hidden = false;
  byId("split").classList.add("two");
  byId("viewer-h").textContent = `Path ${index}`;
  const [text] = verdict(path);
  const facts = [`${path.n.toLocaleString("en")} tokens`, `answer ${path.answer ?? "none"}`, text];
  if (path.stopped === false) facts.push("cut at the limit of tokens");
  [state.a, state.b].forEach((r, i) => {
    if (r !== null && shown.done[r])
      facts.push(`${shown.done[r][2].includes(index) ? "kept" : "not kept"} by ${"AB"[i]}, ${block.rows[r].name}`);
  });
  byId("viewer-facts").textContent = facts.join(" · ");
  const place = byId("text");
  place.removeAttribute("data-ready");
  watcher?.disconnect();
  byId("to-mark").disabled = true;
  byId("scale").replaceChildren();
  const id = problem.texts?.[index];
  if (!id) {
    place.replaceChildren(element("p", problem.left
      ? "This text is left out: the page would be too large." : "Text not recorded."));
  } else {
    const content = await piece(id);
    if (!valid()) return;
    await showText(place, content, path, valid);
    if (!valid()) return;
  }
  place.scrollTop = 0;
  place.dataset.ready = index;
  if (focus) place.focus({ preventScroll: wide() });
}

function closePath(giveFocus = true) {
  if (byId("viewer").hidden) return;
  opening++;
  watcher?.disconnect();
  byId("viewer").hidden = true;
  byId("split").classList.remove("two");
  byId("text").replaceChildren();
  for (const row of shown.rows.values()) row.node.classList.remove("open");
  state.path = null;
  if (giveFocus && opener?.isConnected) opener.focus();
}

/** Where each token begins in the text, and where chunks of it end: at line ends if possible. */
function divide(content) {
  const { t: text, p: pieces } = content;
  const sizes = pieces || (text.match(/[^\n]{1,400}\n?|\n/gu) || []).map((line) => line.length);
  const starts = new Uint32Array(sizes.length + 1), chunks = [];
  let from = 0;
  for (let i = 0; i < sizes.length; i++) {
    const end = starts[i] + sizes[i];
    starts[i + 1] = end;
    const [n, chars] = [i + 1 - from, end - starts[from]];
    const full = n >= CHUNK_TOKENS || chars >= CHUNK_CHARS;
    const forced = n >= 2 * CHUNK_TOKENS || chars >= 2 * CHUNK_CHARS;
    if (full && (text[end - 1] === "\n" || forced)) {
      chunks.push({ from, to: i + 1, forced: text[end - 1] !== "\n" });
      from = i + 1;
    }
  }
  if (from < sizes.length) chunks.push({ from, to: sizes.length, forced: false });
  return { starts, chunks };
}

const bin = (p) => BINS.findIndex((edge) => p < edge);

async function showText(place, content, path, valid) {
  const { starts, chunks } = divide(content);
  const rows = [state.a, state.b].filter((r) => r !== null);
  const lengths = [...new Set(rows.flatMap((r) => shown.block.lengths[r]))].sort((x, y) => x - y);
  const marks = content.p ? lengths.filter((n) => n < path.n) : [];
  const later = lengths.filter((n) => n >= path.n);
  const notes = [];
  if (!content.p) notes.push("The tokens of this text are not recorded, so neither the checkpoint nor confidence can be shown.");
  else if (!content.c) notes.push("The probabilities of the tokens are not recorded.");
  if (content.p && later.length) notes.push(`The path is complete at the checkpoint of ${later.join(", ")} tokens.`);
  if (content.p && content.c) {
    byId("scale").append("Probability that the model gave the token: ");
    BINS.forEach((edge, i) => byId("scale").append(element("span", `< ${edge}`, { class: `c${i}` }), " "));
    byId("scale").append(element("span", `≥ ${BINS[BINS.length - 1]}`), " ");
  }
  byId("scale").append(notes.join(" "));

  const spans = (chunk) => {
    const all = document.createDocumentFragment();
    for (let i = chunk.from; i < chunk.to; i++) {
      if (marks.includes(i)) all.append(markAt(i));
      const text = content.t.slice(starts[i], starts[i + 1]);
      if (!text) continue;
      const p = content.c && content.c[i] !== null ? content.c[i] / 255 : null;
      const span = element("span", text);
      if (p !== null) {
        const at = bin(p);
        if (at >= 0) span.className = `c${at}`;
        span.title = `token ${i + 1}: p = ${p.toFixed(2)}`;
      }
      all.append(span);
    }
    return all;
  };
  const markAt = (n) => element("span", null, {
    class: "mark", role: "separator", "data-label": `checkpoint ${n}`, "aria-label": `checkpoint, ${n} tokens`,
  });
  const fill = (chunk) => {
    if (chunk.filled) return;
    chunk.filled = true;
    chunk.node.replaceChildren(spans(chunk));
  };
  const empty = (chunk) => {
    if (!chunk.filled || chunk.marked) return;
    chunk.filled = false;
    chunk.node.textContent = content.t.slice(starts[chunk.from], starts[chunk.to]);
  };
  const waiting = new Set();
  let working = false;
  const work = async () => {
    if (working) return;
    working = true;
    while (waiting.size && valid()) {
      const [chunk] = waiting;
      waiting.delete(chunk);
      fill(chunk);
      await frame();
    }
    working = false;
  };
  const of = new Map();
  watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chunk = of.get(entry.target);
      if (entry.isIntersecting) waiting.add(chunk);
      else { waiting.delete(chunk); empty(chunk); }
    }
    work();
  }, { root: place, rootMargin: "600px" });
  place.replaceChildren();
  await inSlices(chunks.length, (i) => {
    const chunk = chunks[i];
    chunk.node = element("div", content.t.slice(starts[chunk.from], starts[chunk.to]), { class: "chunk" });
    if (chunk.forced) chunk.node.classList.add("forced");
    of.set(chunk.node, chunk);
    chunk.marked = marks.some((n) => chunk.from <= n && n < chunk.to);
    if (content.p && (i < 2 || chunk.marked)) fill(chunk);
    place.append(chunk.node);
    if (content.p) watcher.observe(chunk.node);
  }, valid);
  byId("to-mark").disabled = !marks.length;
}

function toMark() {
  const marks = [...byId("text").querySelectorAll(".mark")];
  // the height of what was not drawn yet is a guess: look again once it is known
  const go = () => marks[0]?.scrollIntoView({ block: "center" });
  go();
  requestAnimationFrame(() => requestAnimationFrame(go));
}

function step(by) {
  const order = pathButtons();
  const at = order.findIndex((button) => Number(button.textContent) === state.path) + by;
  if (order[at]) openPath(Number(order[at].textContent), order[at], false);
}
