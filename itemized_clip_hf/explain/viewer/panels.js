"use strict";
// One scan on the screen with the map of a finding over it. `show` is what the controls say.

class VolumePanel {
  constructor(parent, result, look, tell) {
    [this.result, this.look, this.tell] = [result, look, tell];
    this.box = element("div", undefined, parent);
    this.canvas = element("canvas", undefined, this.box);
    this.name = element("span", "", this.box);
    this.name.className = "name";
  }
  async start() {
    this.view = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.4, 0.8, 1, 0.8], crosshairWidth: 0.35, crosshairWidthUnit: "percent", crosshairGap: 4, show3Dcrosshair: true,
      dragAndDropEnabled: false, loadingText: "", isResizeCanvas: true, fontMinPx: 14, fontSizeScaling: 0.6, logLevel: "error",
      multiplanarShowRender: 1, isRadiologicalConvention: true,
    });
    await this.view.attachToCanvas(this.canvas);
    // Below the threshold nothing is drawn: the first color, which the viewer gives to all that is lower, is transparent.
    const steps = [0, ...RAMP.map((_, i) => Math.max(i / (RAMP.length - 1), 1 / 255))];
    const [r, g, b] = [0, 1, 2].map((c) => [RAMP[0][c], ...RAMP.map((one) => one[c])]);
    const alpha = steps.map((step, i) => (i ? Math.round(64 + 191 * step) : 0));
    this.view.addColormap("attention", { R: r, G: g, B: b, A: alpha, I: steps.map((step) => Math.round(255 * step)) });
    this.view.onLocationChange = (place) => this.tell(this, place);
    this.canvas.addEventListener("click", () => tellPage({ scan: this.scan, mm: this.mm() }));
    return this;
  }
  async show(scan, finding) {
    const place = this.scan === undefined ? null : this.mm();
    const known = this.result.scans[scan];
    if (this.scan !== scan) {
      while (this.view.volumes.length) this.view.removeVolume(this.view.volumes[0]);
      this.view.addVolume(await niivue.NVImage.loadFromBase64({
        base64: known.volume, name: "scan.nii.gz", colormap: "gray",
      }));
      this.view.addVolume(await niivue.NVImage.loadFromBase64({ base64: known.overlay, name: "map.nii.gz", colormap: "attention" }));
      [this.view.volumes[0].cal_min, this.view.volumes[0].cal_max] = [0, known.white];
      [this.scan, this.finding, this.name.textContent] = [scan, undefined, known.name];
    }
    if (this.finding !== finding) {
      this.view.volumes[1].img.set(mapOf(this.result, finding, scan).refine(known.finer));
      this.finding = finding;
    }
    this.style();
    this.setView();
    if (place) this.goTo(place);
  }
  setView() {
    const kinds = {
      multi: this.view.sliceTypeMultiplanar, axial: this.view.sliceTypeAxial, coronal: this.view.sliceTypeCoronal,
      sagittal: this.view.sliceTypeSagittal, render: this.view.sliceTypeRender,
    };
    this.view.setSliceType(kinds[this.look.view()]);
  }
  style() {
    const map = this.view.volumes[1];
    if (!map) return;
    map.cal_min = this.look.lowest();
    map.cal_max = this.look.highest();
    this.view.setOpacity(1, this.look.opacity());
    this.view.updateGLVolume();
  }
  mm() { return Array.from(this.view.frac2mm(this.view.scene.crosshairPos, 0, true)).slice(0, 3); }
  goTo(mm) {
    this.view.scene.crosshairPos = this.view.mm2frac(mm, 0, true);
    this.view.drawScene();
    this.view.createOnLocationChange();
  }
  attentionAt(mm) {
    const m = this.result.scans[this.scan].mm_to_token;
    return mapOf(this.result, this.finding, this.scan).at(...m.map((row) => row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]));
  }
  peak() {
    const place = this.result.findings[this.finding].scans[this.scan].peak;
    if (place) this.goTo(place);
  }
}

class PicturePanel {
  constructor(parent, result, look, tell) {
    [this.result, this.look, this.tell] = [result, look, tell];
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
  async show(scan, finding) {
    if (this.scan !== scan) {
      this.image = new Image();
      this.image.src = `data:image/png;base64,${this.result.scans[scan].image}`;
      await this.image.decode();
      const scale = Math.max(1, Math.round(896 / this.image.width));
      [this.canvas.width, this.canvas.height] = [scale * this.image.width, scale * this.image.height];
    }
    [this.scan, this.finding] = [scan, finding];
    this.style();
  }
  style() {
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.image, 0, 0, this.canvas.width, this.canvas.height);
    if (this.look.opacity() === 0) return;
    const map = mapOf(this.result, this.finding, this.scan);
    const { width, height } = this.image;
    const at = (y, x) => map.at(0, (y + 0.5) / height * map.grid[1] - 0.5, (x + 0.5) / width * map.grid[2] - 0.5);
    paintMap(pen, width, height, at, this.look.lowest(), this.look.highest(), this.look.opacity());
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
    const map = mapOf(this.result, this.finding, this.scan);
    this.tell(this, { attention: map.at(0, place[0] * map.grid[1] - 0.5, place[1] * map.grid[2] - 0.5) });
  }
  setView() {}
  peak() {}
}

function mapOf(result, finding, scan) {
  const one = result.findings[finding].scans[scan];
  one.map ??= new TokenMap(one.tokens, result.grid);
  return one.map;
}
