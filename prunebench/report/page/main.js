// What is chosen, and what follows from it. Knows no detail of what is shown.

function options(select, labels, chosen) {
  select.replaceChildren(...labels.map(([value, label]) => element("option", label, { value })));
  select.value = chosen;
}

function choose(change) {
  const before = { ...state };
  Object.assign(state, change);
  const block = DATA.blocks[state.block];
  if (!block) {
    byId("table").textContent = "The records hold no cells.";
    return;
  }
  const old = DATA.blocks[before.block];
  if (state.block !== before.block || change.first) {
    const find = (name, other) => {
      const at = change.first ? -1 : block.rows.findIndex((row) => row.name === name);
      return at < 0 ? other : at;
    };
    state.a = find(old.rows[before.a]?.name, block.pair[0]);
    state.b = before.b === null && !change.first ? null : find(old.rows[before.b]?.name, block.pair[1]);
    const id = change.first ? null : bankOf(old).problems[before.problem]?.id;
    state.problem = Math.max(0, bankOf(block).problems.findIndex((p) => p.id === id));
  }
  if (state.block !== before.block || state.all !== before.all || change.first) showResults();
  const titles = DATA.blocks.map((b, i) => [i, b.title]), every = ["all", "all settings"];
  const rows = block.rows.map((row, i) => [i, row.name]);
  options(byId("block"), titles.length > 1 ? [...titles, every] : titles, state.all ? "all" : state.block);
  options(byId("block2"), titles, state.block);
  options(byId("rowA"), rows, state.a);
  options(byId("rowB"), [["", "nothing"], ...rows], state.b ?? "");
  const problems = bankOf(block).problems;
  options(byId("problem"), problems.map((p, i) => {
    const question = (p.question || "").slice(0, 50);
    return [i, `${i + 1}. ${question || p.id}` + (p.n ? ` (${p.right} of ${p.n} right)` : "")];
  }), state.problem);
  byId("back").disabled = state.problem <= 0;
  byId("next").disabled = state.problem >= problems.length - 1;
  byId("bank-note").hidden = !bankOf(block).note;
  byId("bank-note").textContent = bankOf(block).note || "";
  showOverview();
  return showPaths();
}

function showFacts() {
  const { common, differing, notes, n_runs } = DATA.settings;
  const part = (title, pairs) => {
    const box = element("details"), list = element("dl");
    for (const [key, value] of pairs) list.append(element("dt", key), element("dd", value));
    box.append(element("summary", `${title} (${pairs.length})`), list);
    return box;
  };
  const place = byId("facts");
  if (notes.length) {
    const list = element("ul");
    list.append(...notes.map((note) => element("li", note)));
    place.append(list);
  }
  if (common.length) place.append(part("Settings and versions", common));
  if (differing.length) place.append(part("What differs between runs", differing));
  const of = (key) => common.find(([name]) => name === key || name.endsWith(`.${key}`))?.[1];
  const facts = [
    `${n_runs} run${n_runs === 1 ? "" : "s"}`, `${DATA.blocks.length} budget${DATA.blocks.length === 1 ? "" : "s"}`,
    DATA.settings.finished && `finished ${DATA.settings.finished}`, of("code") && `code ${of("code")}`,
    `page of prunebench ${DATA.version}`,
  ];
  byId("about").textContent = facts.filter(Boolean).join(" · ");
}

const on = (id, event, work) => byId(id).addEventListener(event, work);
on("block", "change", (e) => choose(
  e.target.value === "all" ? { all: true } : { all: false, block: Number(e.target.value) }));
on("block2", "change", (e) => choose({ all: false, block: Number(e.target.value) }));
on("rowA", "change", (e) => choose({ a: Number(e.target.value) }));
on("rowB", "change", (e) => choose({ b: e.target.value === "" ? null : Number(e.target.value) }));
on("problem", "change", (e) => choose({ problem: Number(e.target.value) }));
on("back", "click", () => choose({ problem: state.problem - 1 }));
on("next", "click", () => choose({ problem: state.problem + 1 }));
on("scores", "click", () => choose({ scores: true }));
on("overview", "toggle", showOverview);
on("close", "click", () => closePath());
on("earlier", "click", () => step(-1));
on("later", "click", () => step(1));
on("to-start", "click", () => byId("text").scrollTo(0, 0));
on("to-mark", "click", toMark);
on("to-end", "click", () => byId("text").scrollTo(0, byId("text").scrollHeight));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") closePath(); });
document.addEventListener("focusin", (event) => { // on a narrow screen the text covers the rest
  const viewer = byId("viewer");
  if (!viewer.hidden && !wide() && !viewer.contains(event.target)) byId("close").focus();
});
addEventListener("unhandledrejection", (event) => {
  byId("about").textContent = `A part of this file cannot be shown: ${event.reason}. It needs a browser of 2023 or later.`;
  byId("about").className = "warn";
});
if (!document.querySelector("#figures figure"))
  for (const part of [byId("figures"), document.querySelector("nav a[href='#figures']")]) part.hidden = true;
showFacts();
choose({ first: true });
