"""`tfanet predict` on folders, patterns, videos and lines of JSON, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tfanet.cli import main
from tfanet.runtime import Predictor
from tfanet.runtime.shipped import shipped_bundle

BUNDLE = str(shipped_bundle("tfanet-tiny"))
TEXTS = ["the red circle", "the blue square"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(BUNDLE)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Four pictures, called as COCO calls them, and a note."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        picture(number).save(folder / f"{100 + number:012}.png")
    (folder / "notes.txt").write_text("mine")
    return folder


def picture(number: int) -> Image.Image:
    pixels = np.full((60, 80, 3), 40, np.uint8)
    pixels[10 : 20 + 5 * number, 10:30] = (220, 30, 30)
    pixels[30:50, 45 : 55 + 5 * number] = (40, 60, 220)
    return Image.fromarray(pixels)


def predict(*argv: str, code: int = 0, texts: list[str] = TEXTS) -> None:
    texted = [word for text in texts for word in ("--text", text)]
    assert main(["predict", "--bundle", BUNDLE, *argv, *texted]) == code


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def test_a_folder_with_several_sentences(folder, tmp_path, predictor, capsys):
    predict("--image", "in", "--output", "masks", "--overlay", "overlays", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["pictures"], result["masks"]) == (4, 8)
    assert len(list((tmp_path / "masks").iterdir())) == 8
    for path in folder.glob("*.png"):
        for number, prediction in enumerate(predictor(path, TEXTS), 1):
            name = f"{path.stem}.{number}.png"
            assert np.array_equal(read(tmp_path / "masks" / name), prediction.mask)
            overlay = Image.open(tmp_path / "overlays" / name)
            assert np.array_equal(overlay, prediction.plot())


@pytest.mark.parametrize("pattern", ["in/*1*.png", "in/*.png"])
def test_a_pattern_and_coco_files(folder, tmp_path, predictor, pattern, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    mask = pytest.importorskip("pycocotools.mask")
    predict("--image", pattern, "--results", "results.json", "--labels", "labels.json")
    truth = coco.COCO(str(tmp_path / "labels.json"))
    found = truth.loadRes(str(tmp_path / "results.json"))
    files = sorted(folder.glob(pattern.partition("/")[2]))
    assert sorted(truth.getImgIds()) == [int(path.stem) for path in files]
    numbers = {one["name"]: one["id"] for one in truth.loadCats(truth.getCatIds())}
    assert set(numbers) == set(TEXTS)
    count = 0
    for path in files:
        for prediction in predictor(path, TEXTS):
            ids = {"imgIds": [int(path.stem)], "catIds": [numbers[prediction.text]]}
            entries = found.loadAnns(found.getAnnIds(**ids))
            assert len(entries) == (prediction.box is not None)
            labels = truth.loadAnns(truth.getAnnIds(**ids))
            for entry, label in zip(entries, labels, strict=True):
                count += 1
                decoded = mask.decode(entry["segmentation"]).astype(bool)
                assert np.array_equal(decoded, prediction.mask)
                assert np.array_equal(truth.annToMask(label).astype(bool), prediction.mask)
                assert entry["score"] == pytest.approx(prediction.score)
                x, y, width, height = label["bbox"]
                assert (x, y, x + width, y + height) == prediction.box
                assert label["area"] == prediction.area
    assert count > 0


def test_labels_are_read_by_supervision(folder, tmp_path, predictor):
    supervision = pytest.importorskip("supervision")
    predict("--image", "in", "--labels", "labels.json")
    data = supervision.DetectionDataset.from_coco("in", "labels.json", force_masks=True)
    assert len(data) == 4 and set(data.classes) == set(TEXTS)
    for path, _, found in data:
        own = np.any([one.mask for one in predictor(path, TEXTS)], 0)
        grown = np.asarray(Image.fromarray(own).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
        read = found.mask.any(0)  # which counts the line around a polygon as part of it
        assert (read >= own).all() and (read <= grown).all()


def test_lines_of_json(folder, tmp_path, predictor):
    lines = [
        {"image": "in/000000000100.png", "text": TEXTS[0], "image_id": 7},
        {"image": "in/000000000101.png", "text": TEXTS, "image_id": 9},
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    predict("--lines", "l.jsonl", "--output", "m", "--results", "r.json", texts=[])
    names = ["000000000100.png", "000000000101.1.png", "000000000101.2.png"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == names
    assert {one["image_id"] for one in json.loads((tmp_path / "r.json").read_text())} <= {7, 9}


def test_a_picture_that_is_deleted_half_way(folder, tmp_path, capsys, monkeypatch):
    """It is told, the others are done, and the exit code says so."""
    from tfanet.runtime import answers

    load, seen = answers.load_image, []

    def loading(source):
        seen.append(source)
        if len(seen) == 2:
            (folder / "000000000102.png").unlink()
        return load(source)

    monkeypatch.setattr(answers, "load_image", loading)
    predict("--image", "in", "--output", "m", code=1, texts=TEXTS[:1])
    *lines, error = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("tfanet: warning: ")]
    assert len(told) == 1 and "102.png does not exist" in told[0]
    assert "102.png does not exist" in error and "the other 3 pictures are done" in error
    done = ["000000000100.png", "000000000101.png", "000000000103.png"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == done


def test_a_video(folder, tmp_path, predictor, capsys):
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'tfanet[video]'")
    with av.open("clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "bgr0"
        for number in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(number))))
        container.mux(stream.encode())
    predict("--image", "clip.mkv", "--output", "m", "--results", "r.json", texts=TEXTS[:1])
    for number in range(4):
        mask = read(tmp_path / "m" / f"clip.{number:06}.png")
        assert np.array_equal(mask, predictor(picture(number), TEXTS[0]).mask)
    with av.open("none.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "bgr0"
        container.start_encoding()
    capsys.readouterr()
    predict("--image", "none.mkv", "--output", "n", code=1)
    error = capsys.readouterr().err
    assert "none.mkv holds no frames" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--image", "empty", "--output", "m"], "the folder empty holds no pictures"),
        (["--image", "in/*.jpg", "--output", "m"], "no file matches in/*.jpg"),
        (["--image", "p.png", "--output", "m.jpg"], "m.jpg is of a format that changes pixels"),
        (["--image", "p.png", "--output", "m.webp"], "name a .png file"),
        (["--image", "p.png"], "nothing would be written: give --output"),
        (["--output", "m"], "give --image and --text, or --lines"),
        (["--image", "p.png", "--output", "there.png"], "give --overwrite"),
        (["--image", "in", "--output", "in"], "is a picture to segment"),
        (["--image", "p.png", "--output", "x.png", "--overlay", "x.png"], "is given twice"),
        (["--image", "in", "--output", "x", "--overlay", "x"], "is given twice"),
        (["--image", "in", "--output", "p.png"], "is given twice|is a file: name a directory"),
        (["--image", "p.png", "--lines", "l", "--output", "m"], "--image is what each line"),
        (["--image", "in/p.png", "p.png", "--output", "m"], "2 files are called p.png"),
        (["--image", "p.png", "--output", "m.png", "--threshold", "7"], "threshold is 7.0"),
        (["--image", "p.png", "--labels", "no/l.json"], "its directory does not exist"),
    ],
)
def test_mistakes_are_told_before_work_begins(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "in"):
        (tmp_path / name).mkdir()
    for name in ("p.png", "in/p.png"):
        picture(0).save(name)
    (tmp_path / "there.png").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    predict(*argv, code=1, texts=TEXTS[:1])
    error = capsys.readouterr().err
    assert any(word in error for word in words.split("|")) and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "file", "images"),
    [
        ("output", "there", ["in/000000000100.png"]),
        ("overlay", "there", ["in/000000000100.png"]),
        ("results", "there", ["in"]),
        ("labels", "there", ["in"]),
        ("output", "there/000000000101.2.png", ["in"]),
        ("overlay", "there/000000000101.1.png", ["in"]),
    ],
)
def test_what_is_there_stays_without_overwrite(folder, tmp_path, capsys, option, file, images):
    place = tmp_path / file
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    texts = TEXTS if images == ["in"] else TEXTS[:1]
    predict("--image", *images, f"--{option}", "there", code=1, texts=texts)
    error = capsys.readouterr().err
    assert "give --overwrite" in error and error.count("\n") == 1
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "has no lines"),
        ("{", "line 1 of l.jsonl is not JSON"),
        ('{"image": "a.png", "text": "b"}\n[]', "line 2 of l.jsonl is []"),
        ('{"image": 3, "text": "b"}', "expected"),
        ('{"image": "a.png", "text": []}', "expected"),
        ('{"image": "a.png", "text": "b", "image_id": "x"}', "image_id 'x'"),
    ],
)
def test_lines_that_are_wrong(tmp_path, monkeypatch, capsys, lines, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.jsonl").write_text(lines)
    predict("--lines", "l.jsonl", "--output", "m", code=1, texts=[])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_shipped_name_and_what_is_printed(folder, capsys, predictor):
    argv = ["predict", "--bundle", "tfanet-tiny", "--image", "in/000000000100.png"]
    argv += ["--text", TEXTS[0], "--output", "m.png"]
    assert main(argv) == 0
    expected = predictor(folder / "000000000100.png", TEXTS[0])
    assert f"m.png: {expected.area} pixels" in capsys.readouterr().out
    assert np.array_equal(read(Path("m.png")), expected.mask)
    assert main(argv) == 1
    assert main([*argv, "--overwrite", "--threshold", "0.9"]) == 0
    assert read(Path("m.png")).sum() <= expected.area
