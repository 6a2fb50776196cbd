"use strict";
// The page: table, controls, keys. Panels are linked by place.
(async () => {
  const result = JSON.parse(byId("content").textContent);
  const state = { finding: 0, scan: 0, beside: -1, shown: true, opacity: 0.6, threshold: 0.2, order: [] };
  const panels = [];
  const VIEWS = ["multi", "axial", "coronal", "sagittal", "render"];
  const look = {
    highest: () => Math.max(result.findings[state.finding].highest, 1),
    lowest: () => state.threshold * look.highest(),
    opacity: () => (state.shown ? state.opacity : 0),
    view: () => byId("view").value,
  };

  function fillHead() {
    document.title = `Findings: ${result.title}`;
    byId("title").textContent = result.title;
    const { model } = result;
    const parts = [model && `model ${model.name || "without a name"} (${model.sha256.slice(0, 12)})`, model?.domain, `itemized_clip_hf ${result.version}`];
    byId("about").textContent = parts.filter(Boolean).join(" \u00b7 ");
    byId("quantity").textContent = result.quantity;
    byId("meaning").textContent = `${result.quantity}: ${result.meaning}. Attribution: ${result.attribution}.`;
    for (const note of result.notes) element("li", note, byId("notes"));
    const said = new Map();
    for (const check of result.checks) for (const problem of check.problems) {
      if (problem.level === "note") continue;
      const words = `${problem.level} [${problem.code}] ${problem.found}: ${problem.advice}`;
      said.set(words, [...(said.get(words) ?? []), check.scan ?? "study"]);
    }
    for (const [words, scans] of said) element("li", `${scans.join(", ")}: ${words}`, byId("notes"));
    const passed = result.checks.filter((check) => check.verdict === "ok").length;
    if (passed) element("li", `${passed} of ${result.checks.length} scans passed the checks without a remark.`, byId("notes"));
  }

  const strongest = (finding) => finding.scans.reduce((best, scan, n) => (scan.share > finding.scans[best].share ? n : best), 0);

  function fillTable(key, descending) {
    const values = {
      label: (k) => result.findings[k].label.toLowerCase(),
      score: (k) => result.findings[k].score,
      scan: (k) => result.scans[strongest(result.findings[k])].name,
    };
    state.order = result.findings.map((_, k) => k).sort((a, b) => {
      const [x, y] = [values[key](a), values[key](b)];
      return (x < y ? -1 : x > y ? 1 : a - b) * (descending ? -1 : 1);
    });
    byId("findings").replaceChildren(...state.order.map(makeRow));
    for (const head of document.querySelectorAll("th")) {
      head.setAttribute("aria-sort", head.dataset.sort === key ? (descending ? "descending" : "ascending") : "none");
    }
    mark();
  }

  function makeRow(k) {
    const scores = result.findings.map((one) => one.score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const one = result.findings[k];
    const share = high > low ? (one.score - low) / (high - low) : 0;
    const row = element("tr");
    row.dataset.finding = k;
    row.tabIndex = 0;
    element("td", one.label, row).title = one.prompts.join("\n");
    const score = element("td", one.score.toFixed(3), row);
    score.className = "score";
    const bar = element("i", undefined, score);
    bar.style.width = `${100 * share}%`;
    bar.style.background = `rgb(${color(0.35 + 0.5 * share).join(",")})`;
    const most = strongest(one);
    const words = one.scans[most].share > 0 ? `${result.scans[most].name} (${Math.round(100 * one.scans[most].share)} %)` : "nowhere";
    if (result.scans.length > 1) element("td", words, row);
    row.addEventListener("click", () => chooseFinding(k));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") chooseFinding(k); });
    return row;
  }

  function mark() {
    for (const row of byId("findings").children) row.setAttribute("aria-selected", Number(row.dataset.finding) === state.finding);
    byId("low").textContent = look.lowest().toFixed(1);
    byId("high").textContent = look.highest().toFixed(1);
  }

  function drawRamp() {
    byId("unit").textContent = `times the mean ${result.attribution} of a patch`;
    const pen = byId("ramp").getContext("2d");
    for (let x = 0; x < 200; x++) {
      pen.fillStyle = `rgb(${color(x / 199).join(",")})`;
      pen.fillRect(x, 0, 1, 10);
    }
  }

  let linking = false;

  function tell(panel, place) {
    const scan = result.scans[panel.scan];
    if (!scan) return;
    const words = [];
    const mm = place?.mm && Array.from(place.mm).slice(0, 3);
    const attention = mm ? panel.attentionAt(mm) : place?.attention;
    if (scan.geometry && mm) words.push(`${mm.map((x) => x.toFixed(1)).join(", ")} mm (RAS)`);
    if (typeof attention === "number") words.push(`${result.attribution} ${attention.toFixed(2)}`);
    byId("place").textContent = words.join(" \u00b7 ");
    if (result.picture || linking || panels.length < 2) return;
    linking = true;
    for (const other of panels) if (other !== panel && other.scan !== undefined) other.goTo(panel.mm());
    linking = false;
  }

  let shown = Promise.resolve();

  function showAll() {  // one after the other: what is asked for last stays
    shown = shown.then(async () => {
      await panels[0]?.show(state.scan, state.finding);
      await panels[1]?.show(state.beside, state.finding);
      mark();
      document.documentElement.dataset.shown = `${state.finding}:${state.scan}`;
    });
    return shown;
  }

  async function chooseFinding(k) {
    state.finding = k;
    await showAll();
    panels[0]?.peak();
    if (!panels.length) await showMontage();
  }

  async function chooseScan(n) {
    state.scan = n;
    byId("scan").value = n;
    await showAll();
  }

  async function chooseBeside(n) {
    state.beside = n;
    if (n < 0) {
      panels.splice(1).forEach((panel) => panel.box.remove());
    } else {
      if (!panels[1]) panels.push(await new Panel(byId("stage"), result, look, tell).start());
      await panels[1].show(n, state.finding);
      panels[1].goTo(panels[0].mm());
    }
    window.dispatchEvent(new Event("resize"));
  }

  async function showMontage() {
    byId("montages").replaceChildren();
    await drawMontage(byId("montages"), result, state.finding, look.lowest(), look.highest());
  }

  // For printing: every finding, while nothing else is to be done.
  async function fillPrint() {
    for (const k of state.order) {
      const one = result.findings[k];
      element("h2", `${one.label}: ${result.quantity} ${one.score.toFixed(3)}`, byId("print"));
      const highest = Math.max(one.highest, 1);
      await drawMontage(byId("print"), result, k, state.threshold * highest, highest);
      await new Promise((resume) => setTimeout(resume));
    }
    document.documentElement.dataset.printable = "yes";
  }

  function listen() {
    for (const head of document.querySelectorAll("th")) {
      head.firstElementChild.addEventListener("click", () => {
        const sorted = head.getAttribute("aria-sort");
        fillTable(head.dataset.sort, sorted === "ascending" || (head.dataset.sort === "score" && sorted === "none"));
      });
    }
    byId("scan").addEventListener("change", (event) => chooseScan(Number(event.target.value)));
    byId("beside").addEventListener("change", (event) => chooseBeside(Number(event.target.value)));
    byId("view").addEventListener("change", () => panels.forEach((panel) => panel.setView()));
    byId("maximum").addEventListener("click", () => panels[0]?.peak());
    for (const name of ["opacity", "threshold"]) {
      byId(name).addEventListener("input", (event) => {
        state[name] = Number(event.target.value);
        panels.forEach((panel) => panel.style());
        mark();
      });
    }
    document.addEventListener("keydown", press, true);
    window.addEventListener("message", ({ source, data }) => {  // of the page that the report is part of
      if (source !== window.parent || data?.kind !== "itemized-clip-finding" || !result.findings[data.finding]) return;
      if (document.documentElement.dataset.ready) chooseFinding(data.finding);
      else state.finding = data.finding;
    });
  }

  function press(event) {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const next = state.order[state.order.indexOf(state.finding) + step];
      if (next !== undefined) chooseFinding(next);
    } else if (side) {
      if (result.scans[state.scan + side]) chooseScan(state.scan + side);
    } else if (event.key === "h") {
      state.shown = !state.shown;
      panels.forEach((panel) => panel.style());
    } else if (event.key === "m") panels[0]?.peak();
    else if (!result.picture && "12345".includes(event.key)) {
      byId("view").value = VIEWS[Number(event.key) - 1];
      panels.forEach((panel) => panel.setView());
    } else return;
    event.preventDefault();
  }

  if (location.hash === "#embedded") document.documentElement.dataset.embedded = "yes";
  const Panel = result.picture ? PicturePanel : VolumePanel;
  fillHead();
  drawRamp();
  result.scans.forEach((scan, n) => {
    element("option", scan.name, byId("scan")).value = n;
    element("option", scan.name, byId("beside")).value = n;
  });
  if (result.picture || result.scans.length < 2) byId("beside-label").hidden = true;
  if (result.scans.length < 2) for (const id of ["scan-label", "most"]) byId(id).hidden = true;
  if (result.picture) for (const id of ["view-label", "maximum"]) byId(id).hidden = true;
  state.finding = result.findings.map((_, k) => k).sort((a, b) => result.findings[b].score - result.findings[a].score)[0];
  state.scan = strongest(result.findings[state.finding]);
  state.threshold = Math.min(Math.max(state.threshold, 1 / look.highest()), 0.95);  // nothing below the mean, to begin with
  byId("threshold").value = state.threshold;
  byId("scan").value = state.scan;
  fillTable("score", true);
  listen();
  let drawn = "yes";
  try {
    if (!result.picture && !document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL 2");
    panels.push(await new Panel(byId("stage"), result, look, tell).start());
    await chooseFinding(state.finding);
  } catch (error) {
    drawn = "no";
    panels.length = 0;
    document.body.classList.add("still");
    byId("failed").textContent = `Slices through the strongest places stand in for the viewer, which needs WebGL 2 (${error.message}).`;
    await chooseFinding(state.finding);
  }
  window.report = { state, panels, result };
  document.documentElement.dataset.ready = drawn;
  await fillPrint();
})();
