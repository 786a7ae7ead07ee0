// The tables of results: one setting, or all of them.

const nothing = { v: null, t: "" };

function resultCell(cell, row, marked) {
  const text = document.createDocumentFragment();
  text.append(cell.t);
  if (cell.i) text.append(element("span", ` ±${cell.i}`, { class: "pm" }));
  return {
    v: cell.v, node: text, h: cell.v === null && row.note ? row.note : cell.h,
    class: marked ? cell.m || "untied" : "",
  };
}

/** The chosen setting, or one line per cell of all settings. */
function showResults() {
  const all = state.all, blocks = all ? DATA.blocks : [DATA.blocks[state.block]];
  const labels = new Map(blocks.flatMap((b) => b.columns.map((c) => [c.label, c])));
  const places = new Set(blocks.map((b) => b.where)).size > 1;
  const columns = [
    { label: "method", words: true }, { label: "type", words: true },
    ...(all ? [{ label: "checkpoint" }, { label: "N" }, { label: "k" }] : []),
    ...(places ? [{ label: "setting", words: true }] : []),
    ...labels.values(),
  ];
  const reasons = [], seen = new Set(), rows = [];
  for (const block of blocks) {
    const at = new Map(block.columns.map((column, i) => [column.label, i]));
    for (const row of block.rows) {
      if (row.method === "none") { // stands in the block of every k
        const key = `${block.where}\n${block.bank}\n${block.n_paths}\n${block.length}`;
        if (seen.has(key)) continue;
        seen.add(key);
      }
      const name = element("span", null, { title: row.name });
      name.append(element("bdi", row.name));
      if (row.note) {
        let i = reasons.findIndex((r) => r.text === row.note);
        if (i < 0) i = reasons.push({ text: row.note, names: [] }) - 1;
        reasons[i].names.push(row.name);
        name.append(element("sup", ` ${i + 1}`));
      }
      const kept = row.method === "none" ? block.n_paths : block.keep;
      const where = all ? [block.length, block.n_paths, kept].map((v) => ({ v })) : [];
      if (places) where.push({ v: block.where });
      const cells = [...labels.keys()].map(
        (label) => (at.has(label) ? resultCell(row.cells[at.get(label)], row, !all) : nothing));
      rows.push({
        class: row.control ? "control" : "",
        cells: [{ v: row.name, node: name }, { v: row.type || null, t: row.type }, ...where, ...cells],
      });
    }
  }
  byId("legend").textContent = DATA.legend;
  byId("reasons").replaceChildren(
    ...reasons.map((r) => element("li", `${[...new Set(r.names)].join(", ")}: ${r.text}`)));
  return table(byId("table"), columns, rows, all ? "Results, all settings" : `Results, ${blocks[0].title}`);
}
