// Pillow's bilinear filter and the exact area average, to the bit: see runtime/resize.py.

const BITS = 22; // of a weight's fraction, of 8-bit pixels
const HALF = 1 << (BITS - 1);

/** Which inputs make each output along one side, and by which weights. */
export class Filter {
  constructor(inputs, outputs) {
    const scale = inputs / outputs;
    const support = Math.max(scale, 1); // an enlargement looks at two neighbours only
    this.inputs = inputs;
    this.outputs = outputs;
    this.spans = []; // first input and number of inputs
    this.weights = [];
    for (let out = 0; out < outputs; ++out) {
      const center = (out + 0.5) * scale;
      const first = Math.max(Math.trunc(center - support + 0.5), 0);
      const count = Math.min(Math.trunc(center + support + 0.5), inputs) - first;
      const row = new Float64Array(count);
      let sum = 0;
      for (let i = 0; i < count; ++i) {
        const distance = Math.abs((i + first - center + 0.5) * (1 / support));
        row[i] = distance < 1 ? 1 - distance : 0;
        sum += row[i];
      }
      for (let i = 0; i < count && sum !== 0; ++i) row[i] /= sum;
      this.spans.push([first, count]);
      this.weights.push(row);
    }
    this.fixed = this.weights.map((row) => Int32Array.from(row, (w) => 0.5 + w * (1 << BITS)));
  }
}

const clamped = (sum) => Math.min(255, Math.max(0, sum >> BITS));

/** Rows of RGBA pixels to rows of RGB pixels of another width. */
function resizeRows(pixels, width, rows, target, filter) {
  for (let row = 0; row < rows; ++row) {
    for (let out = 0; out < filter.outputs; ++out) {
      const [first, count] = filter.spans[out];
      const weights = filter.fixed[out];
      let at = 4 * (row * width + first);
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let i = 0; i < count; ++i, at += 4) {
        const weight = weights[i];
        red = (red + Math.imul(pixels[at], weight)) | 0;
        green = (green + Math.imul(pixels[at + 1], weight)) | 0;
        blue = (blue + Math.imul(pixels[at + 2], weight)) | 0;
      }
      const place = 3 * (row * filter.outputs + out);
      target[place] = clamped(red);
      target[place + 1] = clamped(green);
      target[place + 2] = clamped(blue);
    }
  }
}

function withoutAlpha(pixels, count, target) {
  for (let i = 0; i < count; ++i) {
    target[3 * i] = pixels[4 * i];
    target[3 * i + 1] = pixels[4 * i + 1];
    target[3 * i + 2] = pixels[4 * i + 2];
  }
}

function resizeColumns(source, rowBytes, filter) {
  const target = new Uint8Array(filter.outputs * rowBytes);
  const sums = new Int32Array(rowBytes);
  for (let out = 0; out < filter.outputs; ++out) {
    const [first, count] = filter.spans[out];
    sums.fill(HALF);
    for (let i = 0; i < count; ++i) {
      const weight = filter.fixed[out][i];
      const begin = (first + i) * rowBytes;
      for (let at = 0; at < rowBytes; ++at) sums[at] += Math.imul(source[begin + at], weight);
    }
    for (let at = 0; at < rowBytes; ++at) target[out * rowBytes + at] = clamped(sums[at]);
  }
  return target;
}

/**
 * A picture to `height` x `width`, as RGB bytes, by Pillow's bilinear filter: along the rows first,
 * then along the columns.
 *
 * A picture has `width`, `height` and `bands()`: its rows in order as { rows, pixels }, RGBA.
 */
export function resizeBilinear(picture, height, width) {
  const narrow = new Uint8Array(picture.height * width * 3);
  const filter = width === picture.width ? null : new Filter(picture.width, width);
  let at = 0;
  for (const { rows, pixels } of picture.bands()) {
    const target = narrow.subarray(at, at + rows * width * 3);
    if (filter === null) withoutAlpha(pixels, rows * width, target);
    else resizeRows(pixels, picture.width, rows, target, filter);
    at += target.length;
  }
  if (height === picture.height) return narrow;
  return resizeColumns(narrow, width * 3, new Filter(picture.height, height));
}

// Of n pixels along a side to m, the i-th new one covers [i n, (i + 1) n) where the j-th old one
// covers [j m, (j + 1) m). Where each begins, and the last ends: the old pixel, and m-ths of it.
function edges(n, m) {
  return Array.from({ length: m + 1 }, (_, i) => [Math.floor((i * n) / m), (i * n) % m]);
}

// One row's weighted sums: of RGBA pixels, RGB sums of `starts.length - 1` new pixels.
function sumRow(pixels, begin, starts, target) {
  const m = starts.length - 1;
  for (let out = 0; out < m; ++out) {
    const [first, before] = starts[out];
    const [last, behind] = starts[out + 1];
    for (let c = 0; c < 3; ++c) {
      let sum = 0;
      for (let x = first; x < last; ++x) sum += pixels[begin + 4 * x + c];
      sum = sum * m - pixels[begin + 4 * first + c] * before;
      if (behind) sum += pixels[begin + 4 * last + c] * behind;
      target[3 * out + c] = sum;
    }
  }
}

/**
 * The exact area average of a picture, as RGB bytes; no side may grow.
 *
 * A value is a weighted sum of whole numbers, divided by the picture's number of pixels, a half
 * rounded up. The sums stay far below 2^53, and a quotient that is no whole number is further from
 * one than its rounding.
 */
export function resizeArea(picture, height, width) {
  const columns = edges(picture.width, width);
  const rows = edges(picture.height, height);
  const sums = new Float64Array(height * width * 3);
  const row = new Float64Array(width * 3);
  let y = 0;
  let out = 0; // the new row that the old one belongs to, at its upper edge
  const add = (to, weight) => {
    if (weight === 0 || to >= height) return;
    const base = to * row.length;
    for (let at = 0; at < row.length; ++at) sums[base + at] += row[at] * weight;
  };
  for (const band of picture.bands()) {
    for (let i = 0; i < band.rows; ++i, ++y) {
      sumRow(band.pixels, 4 * i * picture.width, columns, row);
      while (rows[out + 1][0] < y || (rows[out + 1][0] === y && rows[out + 1][1] === 0)) ++out;
      // No side grows, so an old row lies in two new ones at most.
      const [last, part] = rows[out + 1];
      add(out, last === y ? part : height);
      if (last === y) add(out + 1, height - part);
    }
  }
  const whole = picture.width * picture.height;
  const pixels = new Uint8Array(sums.length);
  for (let i = 0; i < pixels.length; ++i) {
    pixels[i] = Math.floor((2 * sums[i] + whole) / (2 * whole));
  }
  return pixels;
}

/** A plane of float32 to another size by Pillow's bilinear filter on floats. */
export function resizePlane(source, [sourceHeight, sourceWidth], [height, width]) {
  let plane = source;
  if (width !== sourceWidth) {
    const filter = new Filter(sourceWidth, width);
    const target = new Float32Array(sourceHeight * width);
    for (let row = 0; row < sourceHeight; ++row) {
      for (let out = 0; out < width; ++out) {
        const [first, count] = filter.spans[out];
        const weights = filter.weights[out];
        let sum = 0;
        for (let i = 0; i < count; ++i) sum += plane[row * sourceWidth + first + i] * weights[i];
        target[row * width + out] = sum;
      }
    }
    plane = target;
  }
  if (height !== sourceHeight) {
    const filter = new Filter(sourceHeight, height);
    const target = new Float32Array(height * width);
    const sums = new Float64Array(width);
    for (let out = 0; out < height; ++out) {
      const [first, count] = filter.spans[out];
      sums.fill(0);
      for (let i = 0; i < count; ++i) {
        const weight = filter.weights[out][i];
        const begin = (first + i) * width;
        for (let x = 0; x < width; ++x) sums[x] += plane[begin + x] * weight;
      }
      target.set(sums, out * width);
    }
    plane = target;
  }
  return plane;
}
