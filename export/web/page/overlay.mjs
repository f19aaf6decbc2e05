// Masks as pictures.

const [RED, GREEN, BLUE] = [255, 220, 0]; // of the outline, as in runtime/overlay.py
const OUTSIDE = 166; // alpha of the black on what is not meant

// RGBA as a 32-bit number in this machine's order of bytes.
function packed(...rgba) {
  return new Uint32Array(Uint8Array.from(rgba).buffer)[0];
}

function painted(width, height, colourOf) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; ++i) pixels[i] = colourOf(i);
  return image;
}

/** A mask, bytes 0 and 1, in black and white. */
export function stencil(mask, width, height) {
  const [black, white] = [packed(0, 0, 0, 255), packed(255, 255, 255, 255)];
  return painted(width, height, (i) => (mask[i] ? white : black));
}

/** What lies over a picture: nothing where the mask is set, an outline, and darkness elsewhere. */
export function overlay(mask, width, height) {
  const [dark, outline] = [packed(0, 0, 0, OUTSIDE), packed(RED, GREEN, BLUE, 255)];
  const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
  return painted(width, height, (i) => {
    if (mask[i]) return 0;
    const x = i % width;
    const row = i - x;
    const touched =
      mask[row + Math.max(0, x - reach)] ||
      mask[row + Math.min(width - 1, x + reach)] ||
      mask[i - reach * width] || // beyond the picture there is nothing
      mask[i + reach * width];
    return touched ? outline : dark;
  });
}
