// BERT's uncased word pieces: a sentence to tokens, as `tokenizers` does with BERT's file.

import { bertClass, codePoints, isBertPunctuation, lowerCase, withoutAccents } from "./unicode.mjs";

const SPACE = 0x20;
const MAX_WORD = 100; // characters; a longer word is not taken apart
const GOES_ON = "##"; // in front of a piece that does not begin a word

// Control characters are dropped, each ideograph stands alone, accents go, capitals become small.
// White space is one space.
function normalized(sentence) {
  const clean = [];
  for (const c of codePoints(sentence)) {
    const kind = bertClass(c);
    if (kind === "space") clean.push(SPACE);
    else if (kind === "ideograph") clean.push(SPACE, c, SPACE);
    else if (kind === "other") clean.push(c);
  }
  return lowerCase(withoutAccents(clean));
}

export class BertPieces {
  /** Of a tokenizer.json's `model`. */
  constructor(model) {
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.unknown = this.vocabulary.get("[UNK]");
  }

  /** Token ids of a sentence without start and end token. */
  tokens(sentence) {
    const text = normalized(sentence);
    const ids = [];
    for (let at = 0; at < text.length; ++at) {
      const begin = at;
      while (at < text.length && text[at] !== SPACE && !isBertPunctuation(text[at])) ++at;
      if (at > begin) ids.push(...this.pieces(text.slice(begin, at)));
      if (at < text.length && text[at] !== SPACE) ids.push(...this.pieces([text[at]]));
    }
    return ids;
  }

  // The longest pieces from the left on; without one the whole word is unknown.
  pieces(word) {
    if (word.length > MAX_WORD) return [this.unknown];
    const ids = [];
    for (let begin = 0; begin < word.length; ) {
      let end = word.length;
      let id;
      for (; end > begin; --end) {
        const piece = String.fromCodePoint(...word.slice(begin, end));
        id = this.vocabulary.get(begin === 0 ? piece : GOES_ON + piece);
        if (id !== undefined) break;
      }
      if (id === undefined) return [this.unknown];
      ids.push(id);
      begin = end;
    }
    return ids;
  }
}
