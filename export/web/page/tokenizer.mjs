// Sentences to token ids, cut and padded to the model's length, and the messages of a bad sentence.

import { BertPieces } from "./bert_pieces.mjs";
import { ClipPieces } from "./clip_pieces.mjs";
import { codePoints, isPythonSpace } from "./unicode.mjs";

const MAX_TEXT_BYTES = 4096;
const PIECES = { "clip-bpe": ClipPieces, "bert-wordpiece": BertPieces };

/** A sentence that cannot be used: empty, too large, or not Unicode text. */
export class TextError extends Error {}

/** Throws TextError, in the words of Python's runtime, where a sentence cannot be used. */
export function checkText(sentence) {
  if (/[\ud800-\udfff]/u.test(sentence)) {
    throw new TextError("the sentence holds a lone surrogate: it is not valid Unicode");
  }
  const size = new TextEncoder().encode(sentence).length;
  if (size > MAX_TEXT_BYTES) {
    throw new TextError(
      `the sentence has ${size} bytes, the limit is ${MAX_TEXT_BYTES}: shorten it`,
    );
  }
  if (codePoints(sentence).every(isPythonSpace)) {
    throw new TextError("the sentence is empty: say what to segment");
  }
}

export class Tokenizer {
  /**
   * Of a tokenizer.json, parsed, and of what the manifest says under "text". The page's bundle was
   * opened by Python when the page was written, which checked every setting of that file.
   */
  constructor(file, text) {
    this.text = text;
    this.pieces = new PIECES[text.tokenizer](file.model);
    this.room = text.length - (text.truncation === "keep-end" ? 2 : 1); // for words
  }

  /**
   * Ids (L) and word mask (L), 1 from the start to the end token, as arrays of numbers; and how
   * many tokens there was no room for. Throws TextError.
   */
  encode(sentence) {
    checkText(sentence);
    const all = this.pieces.tokens(sentence);
    if (all.length === 0) {
      throw new TextError(
        "the sentence has nothing but accents and control characters: say what to segment",
      );
    }
    const { length, sos_id: start, eos_id: end, pad_id: pad } = this.text;
    const kept = [start, ...all.slice(0, this.room), end].slice(0, length);
    const padding = length - kept.length;
    return {
      ids: [...kept, ...Array(padding).fill(pad)],
      mask: [...Array(kept.length).fill(1), ...Array(padding).fill(0)],
      dropped: Math.max(0, all.length - this.room),
    };
  }
}
