"use strict";
// What both kinds of panels and the montage need: numbers of maps, their colors, and small pieces of the page.

const RAMP = [[70, 0, 80], [150, 0, 70], [230, 60, 20], [255, 180, 40], [255, 255, 220]];
const byId = (id) => document.getElementById(id);

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function color(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const left = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[left].map((value, c) => Math.round(value + (place - left) * (RAMP[left + 1][c] - value)));
}

// A page around this one learns which place was clicked; the place of a picture is a share of its height and width.
const tellPage = (place) => { if (window.parent !== window) window.parent.postMessage({ kind: "itemized-clip-place", ...place }, "*"); };

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

async function unzip(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A map of one finding over one scan: tokens (D, H, W), interpolated between their centers, 0 outside.
class TokenMap {
  constructor(text, grid) {
    this.values = new Float32Array(bytesOf(text).buffer);
    this.grid = grid;
  }
  at(d, h, w) {
    const place = [d, h, w];
    const low = [0, 0, 0], high = [0, 0, 0], share = [0, 0, 0];
    for (let axis = 0; axis < 3; axis++) {
      const count = this.grid[axis];
      if (place[axis] < -0.5001 || place[axis] > count - 0.4999) return 0;
      const clipped = Math.min(Math.max(place[axis], 0), count - 1);
      low[axis] = Math.floor(clipped);
      high[axis] = Math.min(low[axis] + 1, count - 1);
      share[axis] = clipped - low[axis];
    }
    let value = 0;
    for (let corner = 0; corner < 8; corner++) {
      let weight = 1, index = 0;
      for (let axis = 0; axis < 3; axis++) {
        const upper = (corner >> axis) & 1;
        weight *= upper ? share[axis] : 1 - share[axis];
        index = index * this.grid[axis] + (upper ? high : low)[axis];
      }
      if (weight > 0) value += weight * this.values[index];
    }
    return value;
  }
  // On a grid of `finer` steps per token and axis, the first axis fastest, as NIfTI has it.
  refine(finer) {
    const size = this.grid.map((count, axis) => count * finer[axis]);
    const values = new Float32Array(size[0] * size[1] * size[2]);
    const place = (index, axis) => (index + 0.5) / finer[axis] - 0.5;
    let next = 0;
    for (let w = 0; w < size[2]; w++) for (let h = 0; h < size[1]; h++) for (let d = 0; d < size[0]; d++) {
      values[next++] = this.at(place(d, 0), place(h, 1), place(w, 2));
    }
    return values;
  }
}

// Draws a picture's or slice's map over it; at(row, column) -> attention.
function paintMap(pen, width, height, at, lowest, highest, opacity) {
  const layer = document.createElement("canvas");
  [layer.width, layer.height] = [width, height];
  const inner = layer.getContext("2d");
  const pixels = inner.createImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const value = at(y, x);
    const share = Math.min((value - lowest) / (highest - lowest), 1);
    const place = 4 * (y * width + x);
    pixels.data.set(color(share), place);
    pixels.data[place + 3] = share < 0 ? 0 : 64 + 191 * share;
  }
  inner.putImageData(pixels, 0, 0);
  pen.globalAlpha = opacity;
  pen.drawImage(layer, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = 1;
}
