"""Pickles from hostile and from honest hands."""

from __future__ import annotations

import os
import pickle
import subprocess
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, outcome

from tfanet.data import DataError, load_pickle, loads_pickle

PLAIN = [{"a": 1, "b": [1.5, None, True], "c": ("x", "\u00e9"), "d": b"\x00\xff", "e": 2**70}]


class Call:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.parts


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(protocol: int) -> None:
    assert loads_pickle(pickle.dumps(PLAIN, protocol=protocol), "x") == PLAIN


def test_python_2_strings_come_back_as_latin1() -> None:
    # What Python 2 wrote for ['caf\xc3\xa9', u'caf\xe9'] under protocol 2.
    data = b"\x80\x02]q\x00(U\x05caf\xc3\xa9q\x01X\x05\x00\x00\x00caf\xc3\xa9q\x02e."
    first, second = loads_pickle(data, "x")
    assert first.encode("latin1").decode("utf-8") == second == "caf\u00e9"


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch marker",), "posix.system"),
        (eval, ("open('marker', 'w')",), r"(builtins|__builtin__).eval"),
        (subprocess.check_call, (["touch", "marker"],), r"(subprocess|commands).check_call"),
        (getattr, ("", "upper"), r"(builtins|__builtin__).getattr"),
        (OrderedDict, (), "collections.OrderedDict"),
        (Path, ("marker",), "pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_other_global_is_refused_by_name(
    function: object, arguments: tuple[object, ...], name: str, protocol: int, tmp_path: Path
) -> None:
    data = pickle.dumps([Call(function, *arguments)], protocol=protocol)
    file = tmp_path / "refs(unc).p"
    file.write_bytes(data)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(DataError, match=name) as caught:
            load_pickle(file)
    finally:
        os.chdir(before)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_encode_helper_takes_latin1_alone() -> None:
    def calling(codec: str) -> bytes:
        text = b"X\x03\x00\x00\x00abcX" + len(codec).to_bytes(4, "little") + codec.encode()
        return b"\x80\x02c_codecs\nencode\n" + text + b"\x86R."

    assert loads_pickle(calling("latin1"), "x") == b"abc"
    with pytest.raises(DataError, match="rot13"):
        loads_pickle(calling("rot13"), "x")


def test_a_name_hidden_in_another_module_is_refused() -> None:
    with pytest.raises(DataError, match=r"_codecs\.encode\.__globals__|not plain data"):
        loads_pickle(b"\x80\x04\x8c\x07_codecs\x8c\x12encode.__globals__\x93.", "x")


@pytest.mark.parametrize("keep", [0, 1, 5, 40, -1])
def test_every_cut_is_one_clear_line(keep: int) -> None:
    data = pickle.dumps(PLAIN, protocol=2)
    with pytest.raises(DataError, match=r"refs\.p") as caught:
        loads_pickle(data[:keep] if keep >= 0 else data[:-1], "refs.p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # the place 2^31 of the memory
        b"\x80\x02Np2147483647\n.",
        b"\x80\x02Np" + b"9" * 5000 + b"\n.",
        b"\x80\x03B\xff\xff\xff\xff.",  # 4 GB of bytes
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",  # a frame
        # 4 kB of text, and 4,000 calls that make bytes of it
        b"\x80\x02]X\x00\x10\x00\x00"
        + b"x" * 4096
        + b"q\x000("
        + b"c_codecs\nencode\nh\x00\x85R" * 4000
        + b"e.",
    ],
)
def test_small_pickles_take_little_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"x (is cut short|is refused)"):
            loads_pickle(data, "x")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@given(st.data())
@FUZZ
def test_damaged_pickles_are_data_or_one_clear_line(data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps(PLAIN, protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    outcome(lambda: loads_pickle(bytes(whole), "x"), DataError)


def test_noise_is_refused() -> None:
    for data in (b"garbage", b"{}", b"\xff" * 50, b"\x80\x63abc", b"PK\x03\x04" + bytes(90)):
        with pytest.raises(DataError, match=r"refs\.p"):
            loads_pickle(data, "refs.p")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        load_pickle(tmp_path / "none.p")
