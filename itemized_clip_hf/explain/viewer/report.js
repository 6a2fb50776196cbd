"use strict";
(async () => {
  const result = JSON.parse(document.getElementById("content").textContent);
  const byId = (id) => document.getElementById(id);
  const state = { finding: 0, scan: 0, beside: -1, shown: true, opacity: 0.6, threshold: 0.2, order: [] };
  const RAMP = [[0, 0, 0], [128, 0, 64], [230, 60, 20], [255, 180, 40], [255, 255, 220]];

  function color(share) {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const left = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[left].map((value, c) => Math.round(value + (place - left) * (RAMP[left + 1][c] - value)));
  }
  const highest = () => Math.max(result.findings[state.finding].highest, 1);
  const lowest = () => state.threshold * highest();
  const nameOf = (n) => result.scans[n].name;

  function element(tag, text, parent) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  const tellPage = (place) => { if (window.parent !== window) window.parent.postMessage({ kind: "itemized-clip-place", ...place }, "*"); };
  if (location.hash === "#embedded") document.documentElement.dataset.embedded = "yes";

  function fillHead() {
    document.title = `Findings: ${result.title}`;
    byId("title").textContent = result.title;
    const parts = [result.model && `model ${result.model.name || "without a name"} (${result.model.sha256.slice(0, 12)})`, result.model?.domain, `itemized_clip_hf ${result.version}`];
    byId("about").textContent = parts.filter(Boolean).join(" \u00b7 ");
    byId("quantity").textContent = result.quantity;
    byId("meaning").textContent = `${result.quantity}: ${result.meaning}`;
    for (const note of result.notes) element("li", note, byId("notes"));
  }

  function strongest(finding) {
    return finding.scans.reduce((best, scan, n) => (scan.share > finding.scans[best].share ? n : best), 0);
  }

  function fillTable(key, descending) {
    const values = {
      label: (k) => result.findings[k].label.toLowerCase(),
      score: (k) => result.findings[k].score,
      scan: (k) => nameOf(strongest(result.findings[k])),
    };
    state.order = result.findings.map((_, k) => k).sort((a, b) => {
      const [x, y] = [values[key](a), values[key](b)];
      return (x < y ? -1 : x > y ? 1 : a - b) * (descending ? -1 : 1);
    });
    const scores = result.findings.map((one) => one.score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    byId("findings").replaceChildren();
    for (const k of state.order) {
      const one = result.findings[k];
      const row = element("tr", undefined, byId("findings"));
      row.dataset.finding = k;
      row.tabIndex = 0;
      const label = element("td", one.label, row);
      label.title = one.prompts.join("\n");
      const score = element("td", one.score.toFixed(3), row);
      score.className = "score";
      element("i", undefined, score).style.width = `${high > low ? 100 * (one.score - low) / (high - low) : 0}%`;
      const most = strongest(one);
      element("td", `${nameOf(most)} (${Math.round(100 * one.scans[most].share)} %)`, row);
      row.addEventListener("click", () => chooseFinding(k));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") chooseFinding(k); });
    }
    for (const head of document.querySelectorAll("th")) {
      head.setAttribute("aria-sort", head.dataset.sort === key ? (descending ? "descending" : "ascending") : "none");
    }
    mark();
  }

  function mark() {
    for (const row of byId("findings").children) {
      row.setAttribute("aria-selected", Number(row.dataset.finding) === state.finding);
    }
    byId("low").textContent = lowest().toFixed(1);
    byId("high").textContent = highest().toFixed(1);
  }

  function drawRamp() {
    const pen = byId("ramp").getContext("2d");
    for (let x = 0; x < 200; x++) {
      pen.fillStyle = `rgb(${color(x / 199).join(",")})`;
      pen.fillRect(x, 0, 1, 10);
    }
  }

  // Volumes, by NiiVue. Each panel shows one scan; crosshairs are linked in mm.
  const VIEWS = ["multi", "axial", "coronal", "sagittal", "render"];

  class VolumePanel {
    constructor(parent) {
      this.box = element("div", undefined, parent);
      this.canvas = element("canvas", undefined, this.box);
      this.name = element("span", "", this.box);
      this.name.className = "name";
    }
    async start() {
      this.view = new niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [0.4, 0.8, 1, 0.7], crosshairWidth: 1, show3Dcrosshair: true,
        dragAndDropEnabled: false, loadingText: "", isResizeCanvas: true, textHeight: 0.03, logLevel: "error",
        multiplanarShowRender: 1,
      });
      await this.view.attachToCanvas(this.canvas);
      const [r, g, b] = [0, 1, 2].map((c) => RAMP.map((one) => one[c]));
      const alpha = RAMP.map((_, i) => Math.round(64 + 191 * i / (RAMP.length - 1)));
      this.view.addColormap("attention", { R: r, G: g, B: b, A: alpha, I: RAMP.map((_, i) => Math.round(255 * i / (RAMP.length - 1))) });
      this.view.onLocationChange = (place) => tell(this, place);
      this.canvas.addEventListener("click", () => tellPage({ scan: this.scan, mm: this.mm() }));
      return this;
    }
    async show(scan) {
      const place = this.scan === undefined ? null : this.mm();
      const first = this.scan !== scan;
      if (first) {
        while (this.view.volumes.length) this.view.removeVolume(this.view.volumes[0]);
        this.view.addVolume(await niivue.NVImage.loadFromBase64({
          base64: result.scans[scan].volume, name: "scan.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255,
        }));
        this.scan = scan;
        this.name.textContent = nameOf(scan);
      } else if (this.view.volumes.length > 1) {
        this.view.removeVolume(this.view.volumes[1]);
      }
      this.view.addVolume(await niivue.NVImage.loadFromBase64({
        base64: result.scans[scan].maps[state.finding], name: "map.nii.gz", colormap: "attention",
        cal_min: lowest(), cal_max: highest(), opacity: state.shown ? state.opacity : 0,
      }));
      this.style();
      this.setView();
      if (place) this.goTo(place);
    }
    setView() {
      const kinds = {
        multi: this.view.sliceTypeMultiplanar, axial: this.view.sliceTypeAxial, coronal: this.view.sliceTypeCoronal,
        sagittal: this.view.sliceTypeSagittal, render: this.view.sliceTypeRender,
      };
      this.view.setSliceType(kinds[byId("view").value]);
    }
    style() {
      const map = this.view.volumes[1];
      if (!map) return;
      map.cal_min = lowest();
      map.cal_max = highest();
      this.view.setOpacity(1, state.shown ? state.opacity : 0);
      this.view.updateGLVolume();
    }
    mm() { return Array.from(this.view.frac2mm(this.view.scene.crosshairPos)).slice(0, 3); }
    goTo(mm) {
      this.view.scene.crosshairPos = this.view.mm2frac(mm);
      this.view.drawScene();
      this.view.createOnLocationChange();
    }
    peak() { this.goTo(result.findings[state.finding].scans[this.scan].peak); }
  }

  // A picture, and its map over it.
  class PicturePanel {
    constructor(parent) {
      this.box = element("div", undefined, parent);
      this.canvas = element("canvas", undefined, this.box);
      this.canvas.className = "picture";
      this.name = element("span", "", this.box);
      this.name.className = "name";
    }
    async start() {
      this.canvas.addEventListener("mousemove", (event) => this.point(event));
      this.canvas.addEventListener("click", (event) => {
        const place = this.placeOf(event);
        if (place) tellPage({ scan: this.scan, row: place[0], column: place[1] });
      });
      return this;
    }
    async show(scan) {
      if (this.scan !== scan) {
        this.image = new Image();
        this.image.src = `data:image/png;base64,${result.scans[scan].image}`;
        await this.image.decode();
        this.canvas.width = 4 * this.image.width;
        this.canvas.height = 4 * this.image.height;
        this.scan = scan;
      }
      this.style();
    }
    style() {
      const pen = this.canvas.getContext("2d");
      const [width, height] = [this.canvas.width, this.canvas.height];
      pen.imageSmoothingQuality = "high";
      pen.drawImage(this.image, 0, 0, width, height);
      if (!state.shown) return;
      const map = result.scans[this.scan].maps[state.finding];
      const fine = document.createElement("canvas");
      [fine.width, fine.height] = [width / 4, height / 4];
      const inner = fine.getContext("2d");
      const data = inner.createImageData(fine.width, fine.height);
      for (let y = 0; y < fine.height; y++) for (let x = 0; x < fine.width; x++) {
        const value = interpolate(map, (y + 0.5) / fine.height * map.length - 0.5, (x + 0.5) / fine.width * map[0].length - 0.5);
        const at = 4 * (y * fine.width + x);
        data.data.set(color(value / highest()), at);
        data.data[at + 3] = value < lowest() ? 0 : 255 * Math.min(1, 0.25 + 0.75 * value / highest());
      }
      inner.putImageData(data, 0, 0);
      pen.globalAlpha = state.opacity;
      pen.drawImage(fine, 0, 0, width, height);
      pen.globalAlpha = 1;
    }
    placeOf(event) {
      const box = this.canvas.getBoundingClientRect();
      const side = Math.min(box.width / this.canvas.width, box.height / this.canvas.height);
      const x = (event.clientX - box.left - (box.width - side * this.canvas.width) / 2) / side / this.canvas.width;
      const y = (event.clientY - box.top - (box.height - side * this.canvas.height) / 2) / side / this.canvas.height;
      return x < 0 || y < 0 || x >= 1 || y >= 1 ? null : [y, x];
    }
    point(event) {
      const place = this.placeOf(event);
      if (!place) return;
      const map = result.scans[this.scan].maps[state.finding];
      const value = interpolate(map, place[0] * map.length - 0.5, place[1] * map[0].length - 0.5);
      byId("place").textContent = `attention ${value.toFixed(2)}`;
    }
    setView() {}
    peak() {}
  }

  function interpolate(map, row, column) {
    const clip = (value, count) => Math.min(Math.max(value, 0), count - 1);
    const [y, x] = [clip(row, map.length), clip(column, map[0].length)];
    const [top, left] = [Math.floor(y), Math.floor(x)];
    const [bottom, right] = [clip(top + 1, map.length), clip(left + 1, map[0].length)];
    const mix = (a, b, share) => a + (b - a) * share;
    return mix(mix(map[top][left], map[top][right], x - left), mix(map[bottom][left], map[bottom][right], x - left), y - top);
  }

  const panels = [];
  const Panel = result.picture ? PicturePanel : VolumePanel;
  let linking = false;

  function tell(panel, place) {
    if (result.scans[panel.scan]?.geometry && place?.mm) {
      const attention = place.values?.[1]?.value;
      const words = [`${Array.from(place.mm).slice(0, 3).map((x) => x.toFixed(1)).join(", ")} mm (RAS)`];
      if (typeof attention === "number") words.push(`attention ${attention.toFixed(2)}`);
      byId("place").textContent = words.join(" \u00b7 ");
    }
    if (linking || panels.length < 2 || panel.scan === undefined) return;
    linking = true;
    for (const other of panels) if (other !== panel && other.scan !== undefined) other.goTo(panel.mm());
    linking = false;
  }

  async function showAll() {
    await panels[0].show(state.scan);
    if (panels[1]) await panels[1].show(state.beside);
    mark();
  }

  async function chooseFinding(k) {
    state.finding = k;
    await showAll();
    for (const panel of panels.slice(0, 1)) panel.peak();
    document.documentElement.dataset.shown = `${state.finding}:${state.scan}`;
  }

  async function chooseScan(n) {
    state.scan = n;
    byId("scan").value = n;
    await showAll();
    document.documentElement.dataset.shown = `${state.finding}:${state.scan}`;
  }

  async function chooseBeside(n) {
    state.beside = n;
    if (n < 0 && panels[1]) {
      panels.pop().box.remove();
    } else if (n >= 0) {
      if (!panels[1]) panels.push(await new Panel(byId("stage")).start());
      await panels[1].show(n);
      panels[1].goTo(panels[0].mm());
    }
    window.dispatchEvent(new Event("resize"));
  }

  function toggle() {
    state.shown = !state.shown;
    for (const panel of panels) panel.style();
  }

  function listen() {
    for (const head of document.querySelectorAll("th")) {
      head.firstElementChild.addEventListener("click", () => {
        fillTable(head.dataset.sort, head.getAttribute("aria-sort") === "ascending" || (head.dataset.sort === "score" && head.getAttribute("aria-sort") === "none"));
      });
    }
    byId("scan").addEventListener("change", (event) => chooseScan(Number(event.target.value)));
    byId("beside").addEventListener("change", (event) => chooseBeside(Number(event.target.value)));
    byId("view").addEventListener("change", () => panels.forEach((panel) => panel.setView()));
    byId("maximum").addEventListener("click", () => panels[0].peak());
    for (const name of ["opacity", "threshold"]) {
      byId(name).addEventListener("input", (event) => {
        state[name] = Number(event.target.value);
        for (const panel of panels) panel.style();
        mark();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const place = state.order.indexOf(state.finding) + step;
        if (place >= 0 && place < state.order.length) chooseFinding(state.order[place]);
      } else if (side) {
        const scan = state.scan + side;
        if (scan >= 0 && scan < result.scans.length) chooseScan(scan);
      } else if (event.key === "h") toggle();
      else if (event.key === "m") panels[0].peak();
      else if (!result.picture && "12345".includes(event.key)) {
        byId("view").value = VIEWS[Number(event.key) - 1];
        panels.forEach((panel) => panel.setView());
      } else return;
      event.preventDefault();
    }, true);
  }

  fillHead();
  drawRamp();
  result.scans.forEach((scan, n) => {
    element("option", scan.name, byId("scan")).value = n;
    element("option", scan.name, byId("beside")).value = n;
  });
  const none = document.createElement("option");
  none.textContent = "nothing";
  none.value = -1;
  byId("beside").prepend(none);
  byId("beside").value = -1;
  if (result.picture || result.scans.length < 2) byId("beside-label").hidden = true;
  if (result.picture) for (const id of ["view-label", "maximum"]) byId(id).hidden = true;
  state.finding = result.findings.map((_, k) => k).sort((a, b) => result.findings[b].score - result.findings[a].score)[0];
  state.scan = strongest(result.findings[state.finding]);
  fillTable("score", true);
  listen();
  try {
    panels.push(await new Panel(byId("stage")).start());
    byId("scan").value = state.scan;
    await chooseFinding(state.finding);
    window.report = { state, panels, result };
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    byId("stage").replaceChildren();
    element("p", `The viewer needs WebGL 2, which this browser does not offer (${error}).`, byId("stage")).className = "failed";
    document.documentElement.dataset.ready = "no";
  }
})();
