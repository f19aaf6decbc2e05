"""Messages are one plain line, whatever the files that they quote hold."""

from __future__ import annotations

from tfanet.errors import InputError, shown


def test_messages_cannot_steer_a_terminal() -> None:
    assert str(InputError("a\x1b[2Jb\nc\ud800 é\x00")) == r"a\x1b[2Jb c\ud800 é\x00"


def test_values_are_short_and_never_fail() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(10**5000) == "a huge int"
    assert len(shown(deep)) < 100 and len(shown(["x" * 1000] * 1000)) < 300
    assert shown("0.5") == "'0.5'"
