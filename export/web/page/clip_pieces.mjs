// CLIP's byte pairs: a sentence to tokens, as `tokenizers` does with CLIP's tokenizer.json.

import { charClass, codePoints, lowerCase, nfc } from "./unicode.mjs";

const START = "<|startoftext|>";
const END = "<|endoftext|>";
const SUFFIX = "</w>"; // of a word's last byte
const CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
const encoder = new TextEncoder();

// A byte is written as a character that can be seen: printable ones stand for themselves, all
// others follow from U+0100 on.
function byteAlphabet() {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
    return String.fromCodePoint(printable ? byte : next++);
  });
}

// Whether ASCII text stands at a place of code points.
function standsAt(text, at, ascii) {
  for (let i = 0; i < ascii.length; ++i) if (text[at + i] !== ascii.charCodeAt(i)) return false;
  return true;
}

export class ClipPieces {
  /** Of a tokenizer.json's `model`. */
  constructor(model) {
    const idOf = (token) => {
      const id = model.vocab[token];
      if (id === undefined) throw new Error(`the tokenizer lacks the token ${token}`);
      return id;
    };
    this.startId = idOf(START);
    this.endId = idOf(END);
    const alphabet = byteAlphabet();
    this.inner = alphabet.map(idOf);
    this.last = alphabet.map((character) => idOf(character + SUFFIX));
    this.merges = new Map(); // of two tokens: rank and the token that they make
    model.merges.forEach((merge, rank) => {
      const [first, second] = Array.isArray(merge) ? merge : merge.split(" ");
      const pair = this.pairOf(idOf(first), idOf(second));
      this.merges.set(pair, { rank, token: idOf(first + second) });
    });
  }

  pairOf(first, second) {
    return first * 2 ** 21 + second; // ids are far below 2^21
  }

  /** Token ids of a sentence without start and end token. */
  tokens(sentence) {
    // Start and end tokens are found first, in the text as it came; what lies between them is
    // normalised part by part.
    const ids = [];
    const text = codePoints(sentence);
    let begin = 0;
    for (let at = 0; at < text.length; ) {
      const token = [START, END].find((one) => standsAt(text, at, one));
      if (token === undefined) {
        ++at;
        continue;
      }
      this.addWords(text.slice(begin, at), ids);
      ids.push(token === START ? this.startId : this.endId);
      at += token.length;
      begin = at;
    }
    this.addWords(text.slice(begin), ids);
    return ids;
  }

  // Words are runs of letters, single digits, the endings after an apostrophe, and runs of all else
  // but white space.
  addWords(raw, ids) {
    const text = lowerCase(nfc(raw));
    let at = 0;
    const take = (count) => {
      this.addWord(encoder.encode(String.fromCodePoint(...text.slice(at, at + count))), ids);
      at += count;
    };
    while (at < text.length) {
      const kind = charClass(text[at]);
      if (kind === "space") {
        ++at;
        continue;
      }
      if (kind === "number") {
        take(1);
        continue;
      }
      const ending = kind === "other" && CONTRACTIONS.find((one) => standsAt(text, at, one));
      const token = [START, END].find((one) => standsAt(text, at, one));
      if (ending) {
        take(ending.length);
      } else if (token !== undefined) {
        // These come from capitals: one piece, which then falls apart at its letters.
        take(2);
        take(token.length - 4);
        take(2);
      } else {
        let after = at + 1;
        while (after < text.length && charClass(text[after]) === kind) ++after;
        take(after - at);
      }
    }
  }

  // Joins neighbours by the rank of their merge, the leftmost first among equals.
  addWord(bytes, ids) {
    const symbols = Array.from(bytes, (byte, i) =>
      i + 1 === bytes.length ? this.last[byte] : this.inner[byte],
    );
    for (;;) {
      let best;
      let place = -1;
      for (let i = 0; i + 1 < symbols.length; ++i) {
        const merge = this.merges.get(this.pairOf(symbols[i], symbols[i + 1]));
        if (merge !== undefined && (best === undefined || merge.rank < best.rank)) {
          best = merge;
          place = i;
        }
      }
      if (best === undefined) break;
      symbols.splice(place, 2, best.token);
    }
    ids.push(...symbols);
  }
}
