"""Sentences of all scripts, and of characters in disorder, to compare tokenizers by."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

HAND_PICKED = [
    "a",
    " a ",
    "the man in red, on the left!",
    "it's we're I'VE they'll I'd I'm don't 'S 'sx 'ſ",
    "''s 'a' \"'s\" !'s '' 're've",
    "1234 x2y 3½ ² ① ٣ Ⅷ 〇",
    "naïve café cafe\u0301 Ångström Å",
    "日本の猫 中文字符 한국어 각 \u1100\u1161\u11a8",
    "🙂👍🏽👨‍👩‍👧 flag 🇩🇪",
    "tab\there\nline\r\n end\u3000x\u2003y\xa0z\x85q",
    "<|startoftext|>",
    "a<|endoftext|>b",
    "<|STARTOFTEXT|> x",
    "!<|EndOfText|>!",
    "<|endoftext",
    "\x00\x01\x1c\x7f",
    "İSTANBUL I ı ſ ß ẞ Σίσυφος ΣΑΣ ǅ",
    "q\u0307\u0323 q\u0323\u0307 \u0344 \u0958 \ufb01 \u212b \u2126",
    "\u0301\u0301a",
    "a\u0300\u0327\u0345\u05b0b",
    "\u0dd9\u0dcf\u0dca",
    "\U0001d15e \ufdfa \ufeffbom",
    "Ꭰ ꭰ \u1c90 \u10d0 \u2c2f \U00010400 \U0001e900 \ud7ff \ue000 \U0010ffff",
    "…—–‘’“”«»¿¡",
    "don’t",
    "[SEP] [CLS]a[PAD] [MASK]s [UNK] ##s [unused1] [sep]",
    "x\u200dy a\u00adb \ufeff \u202e \ue000 \ufffd \u0378",
    "\u2028a\u2029b\u0085c\u180ed\u200be",
    "a" * 100 + " " + "a" * 101 + " " + "é" * 100 + " " + "\u0301é" * 101,
    "$5+3=8 <a|b> ^_` ~ €5 ™ ¶ § ⁂ ‿ 、。「」 ؟ ། ꧁ 𐄀 ＂＃",
    "\u302e\u0300 \U00016ff0\u0301 \U0001d165\u0301\U0001d16d \u1ab0 \u093c\u093f ํ้",
]
# Runs of code points with rules of their own.
BLOCKS = [
    (0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
    (0x1100, 0x1200), (0x1E00, 0x2070), (0x2100, 0x2300), (0x3040, 0x3100), (0x4E00, 0x4F00),
    (0xA640, 0xABC0), (0xAC00, 0xD7A4), (0xF900, 0xFB50), (0xFF00, 0xFFF0), (0x10400, 0x10500),
    (0x1D100, 0x1D800), (0x1F300, 0x1FA00), (0x2F800, 0x2FA20), (0x20000, 0x33480), (0, 0x110000),
]  # fmt: skip
WORDS = (
    "the a left right red man's dog's woman who isn't 2nd 10 TV T-shirt café über 3/4 ... ' \" "
    "<|endoftext|> [SEP] unbelievably Straße naïveté żółw červený İstanbul nguyễn крáсный "
    "красный червоний Γάτα κόκκινος πράσινη הכלב אָדֹם قطة أَحْمَر کتابچه लाल कुत्ता কুকুর ਕੁੱਤਾ நாய் "
    "కుక్క ಕೆಂಪು നായ සුනඛයා หมาแดง ໝາ ခွေး წითელი ᲬᲘᲗᲔᲚᲘ կարմիր ውሻ ᏣᎳᎩ ᖃᓂᐅᔮᖅ ឆ្កែ རྒྱལ ᠮᠣᠩᠭᠣᠯ 빨간 "
    "강아지 赤い ネコ ｱｶｲ 红色 紅色的貓 ⴰⵔⵓⵎⵉ 𐐔𐐯𐑅 𞤆𞤵𞤤 ﬁne ½ №5 x² ①"
)


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Sentences, the same with accents taken apart, and characters of all blocks in disorder."""
    yield from HAND_PICKED
    rng = random.Random(seed)
    words = WORDS.split(" ")
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.45:
                word = rng.choice(words)
                parts.append(rng.choice([word, word.upper(), word.title()]))
            elif kind < 0.55:
                parts.append(str(rng.randint(0, 10 ** rng.randint(1, 6))))
            else:
                low, high = rng.choice(BLOCKS)
                parts.extend(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))
            parts.append(rng.choice(["", "", " ", " ", "  ", "\t", "\n", "'", "’", "\u0301", "-"]))
        text = "".join(parts)
        if rng.random() < 0.2:
            text = unicodedata.normalize("NFD", text)
        yield "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)
