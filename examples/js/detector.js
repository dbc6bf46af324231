// Run a bundle of `siamdetr export` with ONNX Runtime Web, from its manifest.json alone.
// Numbers in comments are the entries of the manifest's `preparing_images`.

export async function openBundle(ort, address) {
  const manifest = await (await fetch(`${address}/manifest.json`)).json();
  const session = await ort.InferenceSession.create(`${address}/${manifest.files.model}`);
  return new Detector(ort, session, manifest);
}

export class Detector {
  constructor(ort, session, manifest) {
    Object.assign(this, { ort, session, manifest });
  }

  // RGBA pixels of an upright picture -> [{ box: [x0, y0, x1, y1], score, name }], best first.
  async detect({ data, width, height }, threshold = this.manifest.threshold) {
    const { session, manifest, ort } = this;
    const input = prepare(data, width, height, manifest.preprocessing);
    const feeds = {
      images: new ort.Tensor("uint8", input.values, [1, 3, input.height, input.width]),
      original_sizes: new ort.Tensor("int64", BigInt64Array.from([BigInt(height), BigInt(width)]), [1, 2]),
      valid_sizes: new ort.Tensor("int64", BigInt64Array.from([BigInt(input.valid[0]), BigInt(input.valid[1])]), [1, 2]),
    };
    const asked = Object.fromEntries(session.inputNames.map((name) => [name, feeds[name]]));
    const { boxes, scores, labels } = await session.run(asked);
    const found = Array.from(scores.data, (score, i) => ({
      box: Array.from(boxes.data.slice(4 * i, 4 * i + 4), (x, k) => clip(x, 0, k % 2 ? height : width)),
      score,
      name: manifest.class_names[Number(labels.data[i])],
    }));
    if (!found.every(({ box, score }) => [...box, score].every(Number.isFinite))) {
      throw new Error("a score or box is no finite number: the model or the runtime is at fault");
    }
    return found.filter(({ score }) => score >= threshold).sort((a, b) => b.score - a.score);
  }
}

// The model's input: planes of uint8 values, its size, and the [height, width] without padding.
export function prepare(rgba, width, height, spec) {
  const [rows, columns] = resizedSize(spec, height, width);
  const [outRows, outColumns] = spec.mode === "letterbox" ? spec.size : [rows, columns];
  const values = new Uint8Array(3 * outRows * outColumns);
  for (let channel = 0; channel < 3; channel++) { // 2_colour: transparency is dropped
    let plane = new Float64Array(width * height);
    for (let i = 0; i < plane.length; i++) plane[i] = rgba[4 * i + channel];
    plane = transpose(resizeRows(plane, width, columns), columns); // 4_filter: first the width,
    plane = transpose(resizeRows(plane, height, rows), rows); // then the height
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) values[(channel * outRows + y) * outColumns + x] = plane[y * columns + x];
    }
  }
  return { values, height: outRows, width: outColumns, valid: [rows, columns] };
}

// 3_size
function resizedSize({ mode, size, max_size: most }, height, width) {
  if (mode === "fixed") return size;
  if (mode === "letterbox") {
    const scale = Math.min(size[0] / height, size[1] / width);
    return [height, width].map((side) => Math.max(1, roundToEven(side * scale)));
  }
  const short = Math.min(height, width), long = Math.max(height, width);
  let side = size;
  if (most !== null && (long / short) * size > most) side = Math.max(1, roundToEven((most * short) / long));
  const other = Math.max(1, Math.floor((side * long) / short));
  return height <= width ? [side, other] : [other, side];
}

// 4_filter: a triangle around each new pixel's centre, weights of sum 1, rounded to 8 bits.
function resizeRows(plane, length, wanted) {
  if (length === wanted) return plane;
  const rows = plane.length / length, scale = length / wanted, radius = Math.max(1, scale);
  const out = new Float64Array(rows * wanted);
  for (let i = 0; i < wanted; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - radius)), last = Math.min(length, Math.ceil(centre + radius));
    const weights = [];
    for (let k = first; k < last; k++) weights.push(Math.max(0, 1 - Math.abs(k + 0.5 - centre) / radius));
    const total = weights.reduce((a, b) => a + b, 0);
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let k = first; k < last; k++) sum += plane[row * length + k] * weights[k - first];
      out[row * wanted + i] = Math.floor(sum / total + 0.5);
    }
  }
  return out;
}

// [rows, length] -> [length, rows]
function transpose(plane, length) {
  const rows = plane.length / length, out = new Float64Array(plane.length);
  for (let y = 0; y < rows; y++) for (let x = 0; x < length; x++) out[x * rows + y] = plane[y * length + x];
  return out;
}

function roundToEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

function clip(x, low, high) {
  return Math.min(Math.max(x, low), high);
}
