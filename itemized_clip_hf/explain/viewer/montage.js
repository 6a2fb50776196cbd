"use strict";
// Slices through the strongest place of each scan, drawn without WebGL: for printing, and where a browser has none.

const MONTAGE_SCANS = 6;
const SIDES = [["S", "A"], ["S", "R"], ["A", "R"]];  // top and left of a sagittal, coronal and axial slice

async function drawMontage(parent, result, finding, lowest, highest) {
  const one = result.findings[finding];
  const order = one.scans.map((_, n) => n).sort((a, b) => one.scans[b].share - one.scans[a].share).slice(0, MONTAGE_SCANS);
  const row = element("div", undefined, parent);
  row.className = "montage";
  for (const n of order) {
    const figure = element("figure", undefined, row);
    const canvas = element("canvas", undefined, figure);
    const caption = element("figcaption", undefined, figure);
    const where = await (result.picture ? drawPicture : drawSlice)(canvas, result, finding, n, lowest, highest);
    caption.textContent = `${result.scans[n].name}, ${Math.round(100 * one.scans[n].share)} % of the ${result.attribution}${where}`;
  }
}

async function drawPicture(canvas, result, finding, n, lowest, highest) {
  const image = new Image();
  image.src = `data:image/png;base64,${result.scans[n].image}`;
  await image.decode();
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const map = mapOf(result, finding, n);
  const at = (y, x) => map.at(0, (y + 0.5) / image.height * map.grid[1] - 0.5, (x + 0.5) / image.width * map.grid[2] - 0.5);
  paintMap(pen, image.width, image.height, at, lowest, highest, 0.6);
  return "";
}

// Axes of a packed scan run towards left, back and head; a slice has the head, or the front, at its top.
async function drawSlice(canvas, result, finding, n, lowest, highest) {
  const scan = result.scans[n];
  scan.voxels ??= (await unzip(scan.volume)).subarray(352);
  const through = scan.spacing.indexOf(Math.max(...scan.spacing)) === 0 ? 0 : scan.spacing[1] > scan.spacing[2] ? 1 : 2;
  const [across, down] = [[1, 2], [0, 2], [0, 1]][through];
  const flipped = down === 2;
  const [width, height] = [scan.size[across], scan.size[down]];
  const number = Math.min(Math.max(Math.round(scan.peaks[finding][through]), 0), scan.size[through] - 1);
  const voxel = (y, x) => {
    const place = [0, 0, 0];
    place[through] = number;
    place[across] = x;
    place[down] = flipped ? height - 1 - y : y;
    return place;
  };
  const [slice, pen] = [document.createElement("canvas"), canvas.getContext("2d")];
  [slice.width, slice.height] = [width, height];
  const inner = slice.getContext("2d");
  const pixels = inner.createImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const [i, j, k] = voxel(y, x);
    const gray = Math.min(255, 255 * scan.voxels[i + scan.size[0] * (j + scan.size[1] * k)] / scan.white);
    pixels.data.set([gray, gray, gray, 255], 4 * (y * width + x));
  }
  inner.putImageData(pixels, 0, 0);
  const scale = 320 / Math.max(width * scan.spacing[across], height * scan.spacing[down]);
  [canvas.width, canvas.height] = [Math.round(width * scan.spacing[across] * scale), Math.round(height * scan.spacing[down] * scale)];
  pen.drawImage(slice, 0, 0, canvas.width, canvas.height);
  const map = mapOf(result, finding, n);
  const m = scan.voxel_to_token;
  const at = (y, x) => {
    const [i, j, k] = voxel(y, x);
    return map.at(...[0, 1, 2].map((axis) => m[axis][0] * i + m[axis][1] * j + m[axis][2] * k + m[axis][3]));
  };
  paintMap(pen, width, height, at, lowest, highest, 0.6);
  if (!scan.geometry) return "";
  pen.fillStyle = "#ddd";
  pen.font = "13px sans-serif";
  const [top, left] = SIDES[through];
  pen.fillText(left, 4, canvas.height / 2);
  pen.fillText(top, canvas.width / 2, 14);
  return `, ${["sagittal", "coronal", "axial"][through]}`;
}
