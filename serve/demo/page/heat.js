// Attention as pictures: decoding what the server sent, choosing layer and head, painting heat and dots.
// A look: {maps: Uint8 [L, M, h, w], peaks: Float32 [L, M], shape: [L, M, h, w], points?: Float32 [L, M, N, 3] (x, y, weight), references?}.

const INFERNO = ["000004", "0c0826", "240c4f", "420a68", "5d126e", "781c6d", "932667", "ae305c",
  "c73e4c", "dd513a", "ed6925", "f8850f", "fca50a", "fac62d", "f2e661", "fcffa4"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const LEAST_PEAK = 3; // times the share of a cell of an even map: what looks nowhere in particular stays dark

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function decodeLook(answer) {
  return {
    shape: answer.shape,
    maps: bytesOf(answer.maps),
    peaks: answer.peaks,
    points: answer.points ? new Float32Array(bytesOf(answer.points).buffer) : null,
    references: answer.references,
  };
}

// Which of 0..count-1 are meant: one, or all for null.
const chosen = (which, count) => (which === null ? [...Array(count).keys()] : [Math.min(which, count - 1)]);

// The mean map of the chosen layers and heads, [h * w].
function meanMap(look, layer, head) {
  const [L, M, h, w] = look.shape, out = new Float32Array(h * w);
  const layers = chosen(layer, L), heads = chosen(head, M);
  for (const l of layers) {
    for (const m of heads) {
      const start = (l * M + m) * h * w, scale = look.peaks[l * M + m] / 255 / layers.length / heads.length;
      for (let i = 0; i < out.length; i++) out[i] += look.maps[start + i] * scale;
    }
  }
  return out;
}

// For each of `out` samples over `cells` cells: four cells and their weights (Catmull-Rom).
function cubicTaps(cells, out) {
  return Array.from({ length: out }, (_, i) => {
    const at = ((i + 0.5) / out) * cells - 0.5, first = Math.floor(at), t = at - first;
    const clamp = (k) => Math.min(Math.max(first + k, 0), cells - 1);
    return [
      [clamp(-1), clamp(0), clamp(1), clamp(2)],
      [((2 - t) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2, ((4 - 3 * t) * t + 1) * t / 2, (t - 1) * t * t / 2],
    ];
  });
}

function enlarge(map, h, w, H, W) {
  const wide = new Float32Array(h * W), out = new Float32Array(H * W);
  cubicTaps(w, W).forEach(([at, weight], x) => {
    for (let y = 0; y < h; y++) for (let k = 0; k < 4; k++) wide[y * W + x] += map[y * w + at[k]] * weight[k];
  });
  cubicTaps(h, H).forEach(([at, weight], y) => {
    for (let k = 0; k < 4; k++) for (let x = 0; x < W; x++) out[y * W + x] += wide[at[k] * W + x] * weight[k];
  });
  return out;
}

// A small canvas with the map in colour, transparent where there is none.
function heatPicture(look, layer, head, width, height) {
  const [, , h, w] = look.shape, map = meanMap(look, layer, head);
  let peak = LEAST_PEAK / map.length;
  for (const value of map) peak = Math.max(peak, value);
  const scale = Math.min(1, 320 / Math.max(width, height));
  const W = Math.max(w, Math.round(width * scale)), H = Math.max(h, Math.round(height * scale));
  const large = enlarge(map, h, w, H, W), canvas = document.createElement("canvas");
  canvas.width = W;
  canvas.height = H;
  const context = canvas.getContext("2d"), image = context.createImageData(W, H);
  for (let i = 0; i < large.length; i++) {
    const value = Math.min(Math.max(large[i] / peak, 0), 1), at = value * 15, low = Math.min(Math.floor(at), 14);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = INFERNO[low][c] + (INFERNO[low + 1][c] - INFERNO[low][c]) * (at - low);
    image.data[4 * i + 3] = 217 * Math.sqrt(value);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Sampling points as white dots whose area is their weight.
function paintDots(context, look, layer, head, width, height) {
  const [L, M] = look.shape, N = look.points.length / (3 * L * M), marks = [];
  let most = 0;
  for (const l of chosen(layer, L)) {
    for (const m of chosen(head, M)) {
      for (let n = 0; n < N; n++) {
        const at = 3 * ((l * M + m) * N + n), weight = look.points[at + 2];
        marks.push([look.points[at] * width, look.points[at + 1] * height, weight]);
        most = Math.max(most, weight);
      }
    }
  }
  const largest = Math.max(width, height) / 110;
  context.fillStyle = "rgba(255, 255, 255, 0.85)";
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.lineWidth = largest / 7;
  for (const [x, y, weight] of marks) {
    context.beginPath();
    context.arc(x, y, largest * Math.sqrt(weight / most) + 0.3, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}

function paintCross(context, x, y, arm, colour) {
  for (const [stroke, line] of [["rgba(0, 0, 0, 0.8)", arm / 2.2], [colour, arm / 5]]) {
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    context.moveTo(x, y - arm);
    context.lineTo(x, y + arm);
    context.stroke();
  }
}

// Everything between picture and boxes. `view`: {layer, head, style, references}; `point`: the clicked [x, y] or null.
function paintLook(context, look, view, point, width, height) {
  context.fillStyle = "rgba(12, 8, 22, 0.5)";
  context.fillRect(0, 0, width, height);
  const dots = look.points !== null && view.style !== "heat";
  if (!dots || view.style === "both") {
    context.imageSmoothingQuality = "high";
    context.drawImage(heatPicture(look, view.layer, view.head, width, height), 0, 0, width, height);
  }
  if (dots) paintDots(context, look, view.layer, view.head, width, height);
  const arm = Math.max(width, height) / 80;
  if (view.references && look.references) {
    const at = look.references[view.layer === null ? look.references.length - 1 : Math.min(view.layer, look.references.length - 1)];
    if (at.length === 4) {
      context.strokeStyle = "#7dd3fc";
      context.lineWidth = arm / 6;
      context.setLineDash([arm / 1.5, arm / 2]);
      context.strokeRect((at[0] - at[2] / 2) * width, (at[1] - at[3] / 2) * height, at[2] * width, at[3] * height);
      context.setLineDash([]);
    }
    paintCross(context, at[0] * width, at[1] * height, arm, "#7dd3fc");
  }
  if (point) paintCross(context, point[0] * width, point[1] * height, arm, "#ffffff");
}
