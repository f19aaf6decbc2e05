"""Writes what the tokenizers in C++ and JavaScript know about Unicode, by the file's ending.

    python tools/make_unicode_tables.py runtime/cpp/src/unicode_tables.inc
    python tools/make_unicode_tables.py export/web/page/unicode_tables.mjs

Every fact is asked of the `tokenizers` library itself, character by character, because its parts
follow different versions of Unicode, and every browser another one: both then agree with it on
every string. Rows are deltas from row to row, which keeps the files small; unicode.cpp and
unicode.mjs sum them up again.
"""

from __future__ import annotations

import argparse
import functools
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Regex, normalizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic
WIDTH = 100
nfd: Callable[[str], str] = normalizers.NFD().normalize_str
nfc: Callable[[str], str] = normalizers.NFC().normalize_str
lower: Callable[[str], str] = normalizers.Lowercase().normalize_str


def bert_step(name: str) -> Callable[[str], str]:
    """One of the four things that BERT's normalizer does."""
    steps = dict.fromkeys(
        ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False
    )
    step: Callable[[str], str] = BertNormalizer(**{**steps, name: True}).normalize_str
    return step


def pattern_ranges(pattern: str) -> list[tuple[int, int]]:
    """(first, last) of the runs of characters that the pattern matches."""
    erase = normalizers.Replace(Regex(pattern), "").normalize_str
    return ranges(lambda char: not erase(char))


def bert_spaces(clean: Callable[[str], str]) -> list[tuple[int, int]]:
    """(first, last) of what BERT takes for a space, from which no other character can come."""
    split, strip = BertPreTokenizer().pre_tokenize_str, bert_step("strip_accents")
    for c in CODE_POINTS:
        later = lower(strip(clean(chr(c))))
        if " " not in later and len(split(f"a{later}a")) == 2:
            raise SystemExit(f"U+{c:04X} becomes a space: tokenizer_bert.cpp knows none so late")
    return ranges(lambda char: clean(char) == " ")


def ranges(matches: Callable[[str], bool]) -> list[tuple[int, int]]:
    """(first, last) of the runs of characters of a class."""
    runs: list[tuple[int, int]] = []
    for c in CODE_POINTS:
        if not matches(chr(c)):
            continue
        if runs and runs[-1][1] == c - 1:
            runs[-1] = (runs[-1][0], c)
        else:
            runs.append((c, c))
    return runs


def lower_runs() -> list[tuple[int, int, int, int]]:
    """(first, count, step, distance) of runs of capitals; the one that grows is in the C++ code."""
    runs: list[list[int]] = []
    for c in CODE_POINTS:
        small = lower(chr(c))
        if small == chr(c):
            continue
        if len(small) != 1:
            if (c, small) != (0x130, "i\u0307"):
                raise SystemExit(f"U+{c:04X} becomes {small!r}: unicode.cpp knows only U+0130")
            continue
        distance = ord(small) - c
        if runs and runs[-1][3] == distance:
            first, count, step, _ = runs[-1]
            gap = c - (first + (count - 1) * step)
            if gap <= 2 and (count == 1 or gap == step):
                runs[-1] = [first, count + 1, gap, distance]
                continue
        runs.append([c, 1, 1, distance])
    return [(a, b, c, d) for a, b, c, d in runs]


def combining_runs() -> list[tuple[int, int, int]]:
    """(first, last, class): characters that NFC sorts behind a starter, and by which number."""
    samples: dict[int, str] = {}
    for c in CODE_POINTS:
        samples.setdefault(unicodedata.combining(chr(c)), chr(c))

    def moves(first: str, second: str) -> bool:
        return first != second and nfd("a" + first + second) == "a" + nfd(second) + nfd(first)

    low, high = samples[1], samples[max(samples)]
    # A class that the library does not know yet has no part in its order.
    order = [n for n in sorted(samples) if n == 1 or (n and moves(samples[n], low))]
    runs: list[tuple[int, int, int]] = []
    for c in CODE_POINTS:
        char = chr(c)
        if c in HANGUL or not (moves(char, low) or moves(high, char)):
            continue
        rank = next(n for n in order if not moves(char, samples[n]))
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == rank:
            runs[-1] = (runs[-1][0], c, rank)
        else:
            runs.append((c, c, rank))
    return runs


def decompositions() -> list[tuple[int, int, int, int]]:
    """(character, first, second or 0, whether NFC joins the two again)."""
    whole = {c: nfd(chr(c)) for c in CODE_POINTS if c not in HANGUL}
    whole = {c: text for c, text in whole.items() if text != chr(c)}
    by_text = {text: c for c, text in whole.items()}
    rows = []
    for c, text in whole.items():
        if len(text) == 1:
            rows.append((c, ord(text), 0, 0))
            continue
        joined = nfc(text[:-1])
        first = ord(joined) if len(joined) == 1 else by_text[text[:-1]]
        composes = nfc(chr(first) + text[-1]) == chr(c)
        rows.append((c, first, ord(text[-1]), int(composes)))
    return rows


def deltas(rows: Iterable[tuple[int, ...]]) -> str:
    """Lines of the differences from row to row."""
    words, before = [], None
    for row in rows:
        before = before or (0,) * len(row)
        words += [f"{value - last}," for value, last in zip(row, before, strict=True)]
        before = row
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = ""
        line += word
    return "\n".join([*lines, line])


@functools.cache
def tables() -> list[tuple[str, str, str]]:
    """Name, what a row holds, and the rows of every table."""
    clean, strip = bert_step("clean_text"), bert_step("strip_accents")
    apart, split = bert_step("handle_chinese_chars"), BertPreTokenizer().pre_tokenize_str
    run = "first, last"
    found: list[tuple[str, str, Iterable[tuple[int, ...]]]] = [
        ("Letters", run, pattern_ranges(r"\p{L}")),
        ("Numbers", run, pattern_ranges(r"\p{N}")),
        ("Spaces", run, pattern_ranges(r"\s")),
        ("Capitals", "first, count, step, distance to the small letter", lower_runs()),
        ("Combining", "first, last, combining class", combining_runs()),
        ("Decompositions", "character, first, second, composes", decompositions()),
        ("BertDropped", run, ranges(lambda char: not clean(char))),
        ("BertSpaces", run, bert_spaces(clean)),
        ("BertIdeographs", run, ranges(lambda char: apart(char) != char)),
        ("BertAccents", run, ranges(lambda char: not strip(char))),
        ("BertPunctuation", run, ranges(lambda char: len(split(f"a{char}a")) == 3)),
    ]
    return [(name, note, deltas(rows)) for name, note, rows in found]


def text(ending: str) -> str:
    """The whole file, as C++ (".inc") or as JavaScript (".mjs")."""
    before, after = {
        ".inc": ("constexpr int32_t k{}[] = {{", "};"),
        ".mjs": ("export const k{} = [", "];"),
    }[ending]
    return "\n".join(
        [
            "// Made by tools/make_unicode_tables.py; rows are deltas. Do not edit.\n",
            *(
                f"// {note}\n{before.format(name)}\n{rows}\n{after}\n"
                for name, note, rows in tables()
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    output.write_text(text(output.suffix))


if __name__ == "__main__":
    main()
