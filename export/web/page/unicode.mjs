// Text as the tokenizers see it: character classes, normal forms and lower case, as `tokenizers`
// has them. The browser's own follow its version of Unicode, which is another one in every browser.

import * as tables from "./unicode_tables.mjs";

// Rows from their deltas, as columns: rows[i][column].
function summed(deltas, width) {
  const rows = [];
  for (let at = 0; at < deltas.length; at += width) {
    const before = rows.at(-1);
    rows.push(deltas.slice(at, at + width).map((delta, i) => delta + (before ? before[i] : 0)));
  }
  return rows;
}

const letters = summed(tables.kLetters, 2);
const numbers = summed(tables.kNumbers, 2);
const spaces = summed(tables.kSpaces, 2);
const capitals = summed(tables.kCapitals, 4);
const combining = summed(tables.kCombining, 3);
const decompositions = summed(tables.kDecompositions, 4);
const bertDropped = summed(tables.kBertDropped, 2);
const bertSpaces = summed(tables.kBertSpaces, 2);
const bertIdeographs = summed(tables.kBertIdeographs, 2);
const bertAccents = summed(tables.kBertAccents, 2);
const bertPunctuation = summed(tables.kBertPunctuation, 2);

// The last row that begins at or before c, if any.
function rowBefore(rows, c) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][0] <= c) low = middle + 1;
    else high = middle;
  }
  return rows[low - 1];
}

function rowOf(rows, c) {
  const row = rowBefore(rows, c);
  return row !== undefined && c <= row[1] ? row : undefined;
}

const within = (rows, c) => rowOf(rows, c) !== undefined;

/** The code points of a string. */
export const codePoints = (text) => Array.from(text, (character) => character.codePointAt(0));

/** "letter", "number", "space" or "other". */
export function charClass(c) {
  if (within(letters, c)) return "letter";
  if (within(numbers, c)) return "number";
  return within(spaces, c) ? "space" : "other";
}

/** What BertNormalizer makes of a character: "dropped", "space", "ideograph" (alone) or "other". */
export function bertClass(c) {
  if (within(bertSpaces, c)) return "space";
  if (within(bertDropped, c)) return "dropped";
  return within(bertIdeographs, c) ? "ideograph" : "other";
}

/** Whether BertPreTokenizer makes a word of it. */
export const isBertPunctuation = (c) => within(bertPunctuation, c);

/** Whether Python's str.isspace holds, which str.strip goes by. */
export function isPythonSpace(c) {
  return (
    (c >= 0x09 && c <= 0x0d) ||
    (c >= 0x1c && c <= 0x20) ||
    (c >= 0x2000 && c <= 0x200a) ||
    [0x85, 0xa0, 0x1680, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000].includes(c)
  );
}

const combiningClass = (c) => rowOf(combining, c)?.[2] ?? 0;

// Hangul syllables are made of two or three parts by arithmetic.
const SYLLABLES = 0xac00;
const LEADS = 0x1100;
const VOWELS = 0x1161;
const TAILS = 0x11a7; // the first one stands for none
const [LEAD_COUNT, VOWEL_COUNT, TAIL_COUNT] = [19, 21, 28];
const SYLLABLE_COUNT = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;

const inside = (c, first, count) => c >= first && c < first + count;

function decompose(c, out) {
  if (inside(c, SYLLABLES, SYLLABLE_COUNT)) {
    const index = c - SYLLABLES;
    const tail = index % TAIL_COUNT;
    out.push(LEADS + Math.floor(index / (VOWEL_COUNT * TAIL_COUNT)));
    out.push(VOWELS + (Math.floor(index / TAIL_COUNT) % VOWEL_COUNT));
    if (tail !== 0) out.push(TAILS + tail);
    return;
  }
  const row = rowBefore(decompositions, c);
  if (row === undefined || row[0] !== c) {
    out.push(c);
    return;
  }
  decompose(row[1], out);
  if (row[2] !== 0) decompose(row[2], out);
}

// Normalization form D.
function nfd(text) {
  const parts = [];
  for (const c of text) decompose(c, parts);
  for (let at = 0; at < parts.length; ) {
    let end = at;
    while (end < parts.length && combiningClass(parts[end]) !== 0) ++end;
    const marks = parts.slice(at, end).sort((a, b) => combiningClass(a) - combiningClass(b));
    parts.splice(at, marks.length, ...marks);
    at = end + 1;
  }
  return parts;
}

const pairs = new Map(
  decompositions.filter((row) => row[3] !== 0).map((row) => [`${row[1]} ${row[2]}`, row[0]]),
);

// The character that two make together, if any.
function composed(first, second) {
  if (inside(first, LEADS, LEAD_COUNT) && inside(second, VOWELS, VOWEL_COUNT)) {
    return SYLLABLES + ((first - LEADS) * VOWEL_COUNT + (second - VOWELS)) * TAIL_COUNT;
  }
  if (
    inside(first, SYLLABLES, SYLLABLE_COUNT) &&
    (first - SYLLABLES) % TAIL_COUNT === 0 &&
    inside(second, TAILS + 1, TAIL_COUNT - 1)
  ) {
    return first + (second - TAILS);
  }
  return pairs.get(`${first} ${second}`);
}

/** Normalization form C of code points. */
export function nfc(text) {
  // Below U+0300 every character is composed already, and none joins with its neighbour.
  if (text.every((c) => c < 0x300)) return text;
  const out = [];
  let starter = -1;
  let before = 0; // class of the last character that was kept behind the starter
  for (const c of nfd(text)) {
    const now = combiningClass(c);
    if (starter >= 0 && (starter + 1 === out.length || before < now)) {
      const whole = composed(out[starter], c);
      if (whole !== undefined) {
        out[starter] = whole;
        continue;
      }
    }
    if (now === 0) starter = out.length;
    before = now;
    out.push(c);
  }
  return out;
}

/** Normalization form D of code points less its nonspacing marks. */
export function withoutAccents(text) {
  // Below U+00C0 nothing has parts.
  if (text.every((c) => c < 0xc0)) return text;
  return nfd(text).filter((c) => !within(bertAccents, c));
}

/** Each code point for itself: no rule looks at its neighbours. */
export function lowerCase(text) {
  const out = [];
  for (const c of text) {
    const row = rowBefore(capitals, c);
    if (c === 0x130) {
      out.push(0x69, 0x307); // the only capital whose small letter has two characters
    } else if (row && (c - row[0]) % row[2] === 0 && (c - row[0]) / row[2] < row[1]) {
      out.push(c + row[3]);
    } else {
      out.push(c);
    }
  }
  return out;
}
