// Calls the page's own modules: one JSON request on standard input, its answer on standard output.

import { readFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const load = (name) => import(`${folder}/${name}`);

const fileAt = (path) => JSON.parse(readFileSync(path));

// A picture as the browser gives it, in bands of rows.
function pictureOf({ width, height, pixels, band }) {
  function* bands() {
    for (let top = 0; top < height; top += band) {
      const rows = Math.min(band, height - top);
      yield { rows, pixels: pixels.slice(4 * top * width, 4 * (top + rows) * width) };
    }
  }
  return { width, height, bands };
}

const or = (make) => {
  try {
    return make();
  } catch (error) {
    return { error: error.message };
  }
};

const commands = {
  async tokens({ path, text, texts }) {
    const { Tokenizer } = await load("tokenizer.mjs");
    const tokenizer = new Tokenizer(fileAt(path), text);
    return texts.map((one) => tokenizer.pieces.tokens(one));
  },
  async encode({ path, text, texts }) {
    const { Tokenizer } = await load("tokenizer.mjs");
    const tokenizer = new Tokenizer(fileAt(path), text);
    return texts.map((one) => or(() => tokenizer.encode(one)));
  },
  async tensors({ pictures, facts }) {
    const { pictureToTensor } = await load("preprocess.mjs");
    return pictures.map((one) => or(() => Array.from(pictureToTensor(pictureOf(one), facts))));
  },
  async masks({ cases }) {
    const { planeToMask } = await load("preprocess.mjs");
    return cases.map(({ logits, from, size, pre, post }) => {
      const { mask, values } = planeToMask(Float32Array.from(logits), from, size, pre, post);
      return { mask: Array.from(mask), values: Array.from(values) };
    });
  },
  async probabilities({ logits }) {
    const { probability } = await load("preprocess.mjs");
    return Array.from(Float32Array.from(logits), probability);
  },
};

const { command, ...request } = JSON.parse(readFileSync(0));
console.log(JSON.stringify(await commands[command](request)));
