// A picture and a sentence in, a mask at the picture's own size out: the browser's `Predictor`.

import { pictureToTensor, planeToMask, probability } from "./preprocess.mjs";
import { Tokenizer } from "./tokenizer.mjs";

const SENTENCES = 64; // that are kept
const TEXT = "text.onnx";
const IMAGE = "image.onnx";

const milliseconds = () => performance.now();

export class Predictor {
  /** Of an opened bundle, of onnxruntime-web and of one of its execution providers. */
  static async open({ manifest, tokenizer, graphs }, ort, provider) {
    const predictor = new Predictor();
    const options = { executionProviders: [provider] };
    predictor.ort = ort;
    predictor.manifest = manifest;
    predictor.tokenizer = new Tokenizer(tokenizer, manifest.text);
    predictor.text = await ort.InferenceSession.create(graphs[TEXT], options);
    predictor.image = await ort.InferenceSession.create(graphs[IMAGE], options);
    predictor.sentences = new Map();
    return predictor;
  }

  async close() {
    await this.text?.release();
    await this.image?.release();
  }

  /**
   * The features and the word mask of a sentence, from the cache where they are. Throws TextError.
   */
  async encode(sentence) {
    const known = this.sentences.get(sentence);
    if (known !== undefined) {
      this.sentences.delete(sentence); // to the end: the least recently used goes first
      this.sentences.set(sentence, known);
      return known;
    }
    const { ids, mask, dropped } = this.tokenizer.encode(sentence);
    const shape = [1, ids.length];
    const tokens = new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), shape);
    const features = await this.text.run({ token_ids: tokens });
    const words = new this.ort.Tensor("float32", Float32Array.from(mask), shape);
    const encoded = { features, words, dropped };
    this.sentences.set(sentence, encoded);
    if (this.sentences.size > SENTENCES) {
      this.sentences.delete(this.sentences.keys().next().value);
    }
    return encoded;
  }

  /** A picture (see resample.mjs) made ready, to be used with any number of sentences. */
  prepare(picture) {
    const { preprocessing } = this.manifest;
    const tensor = pictureToTensor(picture, preprocessing);
    const image = new this.ort.Tensor("float32", tensor, [1, 3, ...preprocessing.size]);
    return { image, size: [picture.height, picture.width] };
  }

  /**
   * What a sentence means in a prepared picture: `mask`, bytes 0 and 1 at the picture's size
   * (H, W); `score`, the mean probability of its pixels; `noTarget`, how likely it is that nothing
   * is meant, or null; `dropped`, tokens that were cut; `timings` in ms. Throws TextError.
   */
  async predict({ image, size }, sentence) {
    const started = milliseconds();
    const { features, words, dropped } = await this.encode(sentence);
    const encoded = milliseconds();
    const known = { image, word_mask: words, ...features };
    const feed = {};
    for (const { name } of this.manifest.inputs[IMAGE]) feed[name] = known[name];
    const given = await this.image.run(feed);
    const ran = milliseconds();
    const outputs = {};
    for (const { name, role } of this.manifest.outputs[IMAGE]) outputs[role] = given[name];
    const result = this.maskOf(outputs, size);
    const timings = { text: encoded - started, image: ran - encoded, mask: milliseconds() - ran };
    return { ...result, dropped, timings };
  }

  maskOf(outputs, size) {
    const { preprocessing, postprocessing } = this.manifest;
    const { data, dims } = outputs.mask;
    const { mask, values } = planeToMask(data, dims.slice(2), size, preprocessing, postprocessing);
    const noTarget = outputs.no_target ? probability(outputs.no_target.data[0]) : null;
    if (noTarget !== null && outputs.no_target.data[0] > 0) mask.fill(0);
    let [sum, count] = [0, 0];
    const isLogit = postprocessing.value === "logit";
    for (let i = 0; i < mask.length; ++i) {
      if (mask[i] === 0) continue;
      sum += isLogit ? 1 / (1 + Math.exp(-values[i])) : values[i];
      ++count;
    }
    return { mask, score: count === 0 ? 0 : sum / count, noTarget };
  }
}
