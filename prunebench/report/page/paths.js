// The paths of a problem: what A and B keep of them, their lengths and scores.

const bankOf = (block) => DATA.banks[block.bank] || { problems: [] };
const percent = (v) => (v === null || v === undefined ? "–" : (100 * v).toFixed(1));

async function showOverview() {
  if (!byId("overview").open) return;
  const block = DATA.blocks[state.block], problems = bankOf(block).problems;
  const done = await small(block.piece);
  if (block !== DATA.blocks[state.block]) return;
  const names = [state.a, ...(state.b === null ? [] : [state.b])];
  const columns = [
    { label: "problem", words: true }, { label: "question", words: true },
    { label: "right paths %" },
    ...names.flatMap((r, i) => [
      { label: `${"AB"[i]} avg %`, help: block.rows[r].name },
      { label: `${"AB"[i]} vote %`, help: block.rows[r].name }]),
    ...(state.b === null ? [] : [{ label: "A − B vote" }]),
  ];
  const rows = problems.map((problem, i) => {
    const button = element("button", problem.id, { type: "button" });
    button.addEventListener("click", () => choose({ problem: i }));
    const own = done[problem.id] || [];
    const values = names.flatMap((r) => (own[r] ? [own[r][0], own[r][1]] : [null, null]));
    if (state.b !== null) {
      const [x, y] = [values[1], values[3]];
      values.push(x === null || y === null ? null : x - y);
    }
    const question = problem.question || "";
    const share = problem.n ? problem.right / problem.n : null;
    return {
      cells: [
        { v: problem.id, node: button },
        { v: question, node: element("bdi", question.length > 60 ? question.slice(0, 60) + "…" : question) },
        { v: share, t: percent(share) },
        ...values.map((v) => ({ v, t: percent(v) })),
      ],
    };
  });
  await table(byId("problems"), columns, rows, "All problems");
}

const verdict = (path) =>
  path.correct === null || path.correct === undefined ? ["not graded", ""]
    : path.correct ? ["✓ right", "right"] : ["✗ wrong", "wrong"];

function showChoices(block, paths, done) {
  const a = new Set(done[state.a]?.[2] || []), b = new Set((state.b !== null && done[state.b]?.[2]) || []);
  const groups = state.b === null
    ? [["Kept by A", (i) => a.has(i)], ["Not kept", (i) => !a.has(i)]]
    : [["Kept by both", (i) => a.has(i) && b.has(i)], ["Only A", (i) => a.has(i) && !b.has(i)],
      ["Only B", (i) => b.has(i) && !a.has(i)], ["Neither", (i) => !a.has(i) && !b.has(i)]];
  byId("choices").replaceChildren(...groups.map(([label, belongs]) => {
    const own = paths.filter((path) => belongs(path.index));
    const right = own.filter((path) => path.correct).length;
    const box = element("div", null, { "data-group": label });
    const chips = element("div", null, { class: "chips" });
    chips.append(...own.map((path) => {
      const [text, kind] = verdict(path);
      const chip = element("button", `${path.index} ${text.slice(0, 1)}`, { type: "button", class: kind, tabindex: "-1" });
      if (!kind) chip.textContent = path.index;
      chip.title = `path ${path.index}: ${text}, answer ${path.answer ?? "none"}`;
      chip.addEventListener("click", () => openPath(path.index, chip));
      return chip;
    }));
    const count = `${own.length} path${own.length === 1 ? "" : "s"}`;
    box.append(element("h4", `${label}: ${count}, ${right} right`), chips);
    return box;
  }));
  const votes = [state.a, state.b].filter((r) => r !== null).map((r, i) => {
    const own = done[r];
    const vote = own ? `votes ${own[3] ?? "for nothing"}; right in ${percent(own[1])}% of the draws` : "no result here";
    return `${"AB"[i]}, ${block.rows[r].name}: ${vote}.`;
  });
  byId("choices").prepend(element("p", votes.join(" "), { class: "small" }));
}

// ---- the paths of a problem -----------------------------------------------------------------
let shown = { paths: [], signals: [], done: [], rows: new Map() };

async function showPaths() {
  const block = DATA.blocks[state.block], problem = bankOf(block).problems[state.problem];
  closePath(false);
  if (!problem) {
    byId("paths").replaceChildren(element("p", "The records hold no paths for this setting."));
    byId("choices").replaceChildren();
    byId("question").textContent = "";
    return;
  }
  const now = { ...state };
  const [content, outcomes] = await Promise.all([
    problem.piece ? small(problem.piece) : { paths: [], signals: [] }, small(block.piece)]);
  if (["block", "a", "b", "problem", "scores"].some((key) => now[key] !== state[key])) return;
  const done = outcomes[problem.id] || [];
  byId("question").replaceChildren(
    element("strong", "Question "), element("bdi", problem.question ?? "not recorded"),
    element("strong", "  Gold answer "), element("bdi", problem.gold ?? "not recorded"));
  showChoices(block, content.paths, done);
  if (!content.paths.length) {
    byId("paths").replaceChildren(element("p", "No scored paths are recorded for this problem."));
    return;
  }
  const own = [state.a, ...(state.b === null ? [] : [state.b])];
  // Scores that depend on the other paths belong to the rows that were pruned by them.
  const near = content.signals.filter((s) => s.seed === block.seed
    && (!s.n_paths || block.rows.some((row) => row.signal === s.id)));
  const first = own.map((r) => block.rows[r].signal);
  const at = (s) => own.some((r) => block.lengths[r].includes(s.length)) || s.length === block.length;
  const rank = (s) => (first.indexOf(s.id) + 1 || 9) * 1e9 + s.length;
  const signals = near.filter(at).sort((x, y) => rank(x) - rank(y));
  byId("scores").hidden = signals.length <= SCORES;
  byId("scores").textContent = `show all ${signals.length} scores`;
  if (!state.scores) signals.length = Math.min(signals.length, SCORES);
  const several = new Set(signals.map((s) => s.length)).size > 1;
  const longest = Math.max(1, ...content.paths.map((path) => path.n));
  const pool = content.paths.length > block.n_paths;
  const kept = own.map((r) => (done[r] ? new Set(done[r][2]) : null));
  const columns = [
    { label: "path" },
    { label: "verdict", words: true },
    ...own.map((r, i) => ({ label: "AB"[i], words: true, help: `kept by ${block.rows[r].name}` })),
    { label: "length", help: `checkpoint: ${block.length} tokens` },
    { label: "tokens" },
    { label: "answer", words: true },
    ...signals.map((s) => ({
      label: s.method + (several ? ` @${s.length}` : ""),
      help: `score at ${s.length} tokens, higher = keep` + (s.probability ? "; claims to be a probability" : "")
        + (s.n_paths ? `; among the first ${s.n_paths} drawn${s.rule && ", "}${s.rule}` : ""),
    })),
  ];
  const rows = content.paths.map((path, i) => {
    const [text, kind] = verdict(path);
    const button = element("button", `${path.index}`, { type: "button", "aria-label": `path ${path.index}, ${text}`, tabindex: i ? "-1" : "0" });
    const node = element("tr");
    node.addEventListener("click", () => openPath(path.index, button));
    const marks = kept.map((set) => {
      if (!set) return { v: null, t: "–" };
      const is = set.has(path.index);
      const text = is ? "● kept" : pool ? "○ not kept" : "○ dropped";
      return { v: is ? "0" : "1", node: element("span", text, { class: is ? "kept" : "dropped" }) };
    });
    return {
      index: path.index, button, node,
      cells: [
        { v: path.index, node: button },
        { v: text, node: element("span", text, { class: kind }) },
        ...marks,
        { v: path.n, node: lengthBar(path.n, longest, block.lengths[own[0]], kept[0] ? kept[0].has(path.index) : true) },
        { v: path.n, t: path.n.toLocaleString("en") + (path.stopped === false ? " (cut)" : "") },
        { v: path.answer, node: element("bdi", shorten(path.answer)), h: path.answer },
        ...signals.map((s) => ({
          v: s.scores[i], t: s.scores[i] === null ? "–" : Number(s.scores[i]).toPrecision(4),
          h: s.scores[i] === null ? "could not be scored" : "",
        })),
      ],
    };
  });
  shown = { paths: content.paths, signals, done, rows: new Map(rows.map((row) => [row.index, row])), block, problem };
  byId("paths-h").textContent = `All ${content.paths.length} paths of this problem`
    + (pool ? `, of which ${block.n_paths} are drawn at a time; kept: of the first draw` : "");
  await table(byId("paths"), columns, rows, "Paths", (top) => {
    if (!top.some((row) => row.button.tabIndex === 0)) rove(top[0].button);
  });
}

const pathButtons = () => [...byId("paths").querySelectorAll("tbody th button")];
const shorten = (text) => (text === null || text === undefined ? "none" : text.length > 24 ? text.slice(0, 24) + "…" : text);

function lengthBar(n, longest, checkpoints, isKept) {
  const box = element("div", null, { class: "length", "aria-hidden": "true" });
  const whole = element("i"), used = element("i"), last = checkpoints[checkpoints.length - 1];
  whole.style.width = `${(100 * n) / longest}%`;
  used.style.width = `${(100 * (isKept ? n : Math.min(n, last))) / longest}%`;
  box.append(whole, used);
  for (const at of checkpoints) {
    if (at > longest) continue;
    const tick = element("b");
    tick.style.left = `${(100 * at) / longest}%`;
    box.append(tick);
  }
  return box;
}

byId("paths").addEventListener("keydown", (event) => {
  const buttons = pathButtons();
  const at = buttons.indexOf(document.activeElement);
  const page = 10;
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -buttons.length, End: buttons.length }[event.key];
  if (at < 0 || step === undefined) return;
  event.preventDefault();
  const next = buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)];
  rove(next);
  next.focus();
  if (!byId("viewer").hidden && wide()) openPath(Number(next.textContent), next, false);
});
const wide = () => matchMedia("(min-width: 1150px)").matches;

function rove(button) {
  for (const { button: other } of shown.rows.values()) other.tabIndex = other === button ? 0 : -1;
}
