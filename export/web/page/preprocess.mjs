// Pictures to tensors and logits to masks, to the bit as runtime/preprocess.py does.

import { resizeArea, resizeBilinear, resizePlane } from "./resample.mjs";

const LETTERBOX = "letterbox-area";
const MIN_SIDE = 2;
const MAX_SIDE = 65535;
const MAX_PIXELS = 64000000;
const MAX_RESIZE_BYTES = 2 ** 30;

/** A picture that cannot be used. */
export class ImageError extends Error {}

/** Throws ImageError, in the words of Python's runtime, for a picture too small or too large. */
export function checkPicture({ width, height }, [rows, columns]) {
  const size = `the image is ${width}x${height} pixels`;
  if (Math.min(width, height) < MIN_SIDE) {
    throw new ImageError(`${size}: each side must be ${MIN_SIDE} or more`);
  }
  if (width * height > MAX_PIXELS) {
    throw new ImageError(`${size}, the limit is ${grouped(MAX_PIXELS)}: reduce it first`);
  }
  if (Math.max(width, height) > MAX_SIDE) {
    throw new ImageError(`${size}, a side may have at most ${grouped(MAX_SIDE)}: reduce it first`);
  }
  const needed = 4 * Math.max(height * columns, rows * width);
  if (needed > MAX_RESIZE_BYTES) {
    throw new ImageError(
      `${size}, too long for a model of ${columns}x${rows}: resizing it would take ` +
        `${grouped(needed)} bytes, the limit is ${grouped(MAX_RESIZE_BYTES)}: reduce it first`,
    );
  }
}

const grouped = (number) => number.toLocaleString("en-GB");

/** Where a picture of a size (H, W) lies in a box, as `Letterbox` of runtime/letterbox.py says. */
export function letterbox([height, width], [rows, columns]) {
  const ratio = Math.min(rows / height, columns / width);
  const resized = [height, width].map((side) => Math.max(1, halvesToEven(side * ratio)));
  const top = Math.floor((rows - resized[0]) / 2);
  const left = Math.floor((columns - resized[1]) / 2);
  const single = Math.fround(ratio);
  const seen = [height, width].map((side) =>
    Math.max(1, Math.trunc(Math.fround(Math.fround(side) * single))),
  );
  return { resized, top, left, bottom: top + seen[0], right: left + seen[1] };
}

// Adding 1.5 * 2^52 leaves a double no room for a fraction.
const halvesToEven = (value) => value + 6755399441055744 - 6755399441055744;

/**
 * A picture (see `resizeBilinear`) as the image graph's input: float32 (3, H, W).
 *
 * `facts` is the manifest's "preprocessing". Throws ImageError.
 */
export function pictureToTensor(picture, facts) {
  const [rows, columns] = facts.size;
  checkPicture(picture, facts.size);
  const pixels =
    facts.resize === LETTERBOX
      ? boxed(picture, facts)
      : resizeBilinear(picture, rows, columns);
  const plane = rows * columns;
  const tensor = new Float32Array(3 * plane);
  for (let c = 0; c < 3; ++c) {
    const scale = Math.fround(1 / (255 * facts.std[c]));
    const shift = Math.fround(facts.mean[c] / facts.std[c]);
    for (let i = 0; i < plane; ++i) {
      tensor[c * plane + i] = Math.fround(pixels[3 * i + c] * scale) - shift;
    }
  }
  return tensor;
}

function boxed(picture, facts) {
  const [rows, columns] = facts.size;
  const { resized, top, left } = letterbox([picture.height, picture.width], facts.size);
  const [height, width] = resized;
  const grows = height > picture.height || width > picture.width;
  const pixels = (grows ? resizeBilinear : resizeArea)(picture, height, width);
  const box = new Uint8Array(3 * rows * columns);
  for (let i = 0; i < box.length; ++i) box[i] = facts.padding[i % 3];
  for (let y = 0; y < height; ++y) {
    const row = pixels.subarray(3 * y * width, 3 * (y + 1) * width);
    box.set(row, 3 * ((top + y) * columns + left));
  }
  return box;
}

/**
 * Logits (h, w) to a mask at the picture's own size (H, W): bytes 0 and 1, and the values that were
 * compared. `pre` and `post` are the manifest's "preprocessing" and "postprocessing".
 */
export function planeToMask(logits, from, size, pre, post) {
  let plane = post.value === "probability" ? logits.map(probability) : logits;
  let shape = from;
  if (pre.resize === LETTERBOX) {
    plane = resizePlane(plane, shape, pre.size);
    const { top, left, bottom, right } = letterbox(size, pre.size);
    shape = [bottom - top, right - left];
    plane = cropped(plane, pre.size[1], top, left, shape);
  }
  const values = resizePlane(plane, shape, size);
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < mask.length; ++i) mask[i] = values[i] > post.threshold ? 1 : 0;
  return { mask, values };
}

function cropped(plane, stride, top, left, [height, width]) {
  const target = new Float32Array(height * width);
  for (let y = 0; y < height; ++y) {
    const begin = (top + y) * stride + left;
    target.set(plane.subarray(begin, begin + width), y * width);
  }
  return target;
}

const LOG2_E = 1.4426950408889634;
const LN_2 = [0.6931471803691238, 1.9082149292705877e-10]; // its upper bits, and the rest
const TERMS = [1]; // 1 / n!, from n = 13 to 0
for (let n = 1, factorial = 1; n <= 13; ++n) TERMS.unshift(1 / (factorial *= n));
const MOST = 1100; // of the powers of 2, which Math.pow need not have exactly
const POWERS = new Float64Array(2 * MOST + 1);
POWERS[MOST] = 1;
for (let n = 1; n <= MOST; ++n) {
  POWERS[MOST + n] = POWERS[MOST + n - 1] * 2;
  POWERS[MOST - n] = POWERS[MOST - n + 1] / 2;
}

/** 1 / (1 + exp(-z)) with the bits of Python's and the C library's. */
export function probability(logit) {
  const x = Math.min(700, Math.max(-700, -logit));
  const power = halvesToEven(x * LOG2_E);
  const rest = x - power * LN_2[0] - power * LN_2[1];
  let total = 0;
  for (const term of TERMS) total = total * rest + term;
  return Math.fround(1 / (1 + total * POWERS[MOST + power]));
}
