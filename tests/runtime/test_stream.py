"""Videos frame by frame: in order, one frame ahead, in bounded memory, errors by frame."""

from __future__ import annotations

import sys
import threading
import weakref

import numpy as np
import pytest

from tfanet import Predictor
from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime import ImageError
from tfanet.runtime.video import video_frames


def frame(number: int) -> np.ndarray:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, : number + 5, 0] = 255
    pixels[:, number + 5 :, 2] = 255
    return pixels


def test_order_is_kept_and_results_are_a_call_s(shared_bundle):
    predictor = Predictor(shared_bundle)
    found = list(predictor.stream(map(frame, range(20)), "red"))
    assert found == [predictor(frame(number), "red") for number in range(20)]
    several = list(predictor.stream([frame(3), frame(4)], ["red", predictor.encode_text("big")]))
    assert [[one.text for one in row] for row in several] == [["red", "big"]] * 2
    assert list(predictor.stream([], "red")) == []
    assert len(list(predictor.stream(np.stack([frame(0), frame(9)]), "red"))) == 2


class Frame(np.ndarray):
    """NumPy's own arrays take no weak references."""


def test_no_more_than_the_next_frame_is_held(shared_bundle):
    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        for number in range(12):
            most = max(most, sum(one() is not None for one in alive))
            pixels = frame(number).view(Frame)
            alive.append(weakref.ref(pixels))
            yield pixels
            del pixels

    for result in Predictor(shared_bundle).stream(frames(), "red"):
        del result
    assert len(alive) == 12 and most <= 2


def test_the_next_frame_is_made_while_one_is_used(shared_bundle):
    """Each frame waits for the one before it to be used: without the other thread, for ever."""
    used, made = threading.Semaphore(0), []

    def frames():
        for number in range(3):
            if number == 1:
                assert used.acquire(timeout=60)
            made.append(threading.current_thread())
            yield frame(number)

    stream = Predictor(shared_bundle).stream(frames(), "red")
    next(stream)
    used.release()
    assert len(list(stream)) == 2
    assert threading.current_thread() not in made


def test_a_stream_that_is_left_stops_its_source(shared_bundle):
    stopped = []

    def endless():
        try:
            while True:
                yield frame(0)
        finally:
            stopped.append(True)

    stream = Predictor(shared_bundle).stream(endless(), "red")
    next(stream)
    stream.close()
    assert stopped == [True]
    assert not [one for one in threading.enumerate() if one.name.startswith("tfanet-ahead")]


def test_a_bad_frame_is_named_and_may_be_left_out(shared_bundle, tmp_path):
    predictor = Predictor(shared_bundle)
    frames = [frame(0), tmp_path / "gone.png", frame(1), np.zeros((5, 5), bool), frame(2)]
    stream = predictor.stream(frames, "red")
    assert next(stream) == predictor(frame(0), "red")
    with pytest.raises(ImageError, match=r"frame 1: .*gone\.png does not exist"):
        next(stream)
    told: list[tuple[int, str]] = []
    kept = list(predictor.stream(frames, "red", on_error=lambda n, e: told.append((n, str(e)))))
    assert kept == [predictor(frame(number), "red") for number in range(3)]
    assert [number for number, _ in told] == [1, 3] and told[1][1].startswith("frame 3: ")


def test_what_concerns_no_frame_is_told_at_once(shared_bundle, monkeypatch, tmp_path):
    predictor = Predictor(shared_bundle)
    for frames, text, words in (
        ([frame(0)], "", "empty"),
        ([frame(0)], [], "list of sentences is empty"),
        (7, "red", "frames are a int: give the path of a video"),
        (b"x", "red", "frames are a bytes"),
    ):
        with pytest.raises(InputError, match=words):
            predictor.stream(frames, text)
    with pytest.raises(InputError, match="threshold"):
        predictor.stream([frame(0)], "red", threshold=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tfanet\[video\]'"):
        predictor.stream("x.mp4", "red")


@pytest.fixture
def av():
    return pytest.importorskip("av", reason="PyAV is not installed: pip install 'tfanet[video]'")


def write_video(av, path, count: int = 9, codec: str = "ffv1"):
    """Lossless, so that frames come back to the bit."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 60, 40, "bgr0"
        container.start_encoding()  # a file without frames has its head, too
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_of_a_video(av, tmp_path, shared_bundle):
    path = write_video(av, tmp_path / "v.mkv")
    frames = list(video_frames(path))
    assert len(frames) == 9
    for number, found in enumerate(frames):
        assert np.array_equal(found, frame(number))
    predictor = Predictor(shared_bundle)
    for source in (path, str(path)):
        found = list(predictor.stream(source, "red"))
        assert found == [predictor(frame(number), "red") for number in range(9)]


def test_videos_that_are_none(av, tmp_path):
    def told(path) -> str:
        with pytest.raises(ImageError) as caught:
            list(video_frames(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    assert "is not there" in told(tmp_path / "none.mp4")
    assert "is not there" in told("http://127.0.0.1:9/v.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    assert "is no video" in told(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "is no video" in told(tmp_path / "empty.mp4")
    assert "holds no frames" in told(write_video(av, tmp_path / "no.mkv", count=0))
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    assert "only sound" in told(tmp_path / "sound.mkv")


def test_a_playlist_opens_no_other_file(av, tmp_path):
    """What a video file names, another file or a host, is not opened."""
    secret = write_video(av, tmp_path / "secret.mkv")
    for name, content in (
        ("list.mp4", f"ffconcat version 1.0\nfile {secret}\n"),
        ("list.ts", f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ImageError, match="is no video"):
            list(video_frames(tmp_path / name))
