// Pixels of what the browser has decoded.

const BAND_PIXELS = 1 << 20; // of a picture, read back at a time

/** The picture in a file, upright, its colours as they are in the file; throws Error. */
export async function decoded(file) {
  const options = { colorSpaceConversion: "none", imageOrientation: "from-image" };
  try {
    return await createImageBitmap(file, options);
  } catch {
    throw new Error(
      `${file.name} is not a picture that this browser reads: save it as JPEG, PNG or WebP`,
    );
  }
}

/** An ImageBitmap as a picture: `width`, `height`, `bands()`. Transparency is laid on white. */
export function pictureOf(bitmap) {
  const { width, height } = bitmap;
  const step = Math.min(height, Math.max(1, Math.floor(BAND_PIXELS / width)));
  function* bands() {
    const canvas = new OffscreenCanvas(width, step);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    for (let top = 0; top < height; top += step) {
      const rows = Math.min(step, height - top);
      context.fillStyle = "white";
      context.fillRect(0, 0, width, rows);
      context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
      yield { rows, pixels: context.getImageData(0, 0, width, rows).data };
    }
  }
  return { width, height, bands };
}
