"""A page that runs a bundle in the browser: how it is written, and in Chromium what it shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chromium import Page, chromium, served
from hand_made import BOXED, PROBABILITIES, WORD_PIECES, image_model, write_bundle
from PIL import Image

from tfanet.cli import main
from tfanet.errors import InputError, MissingDependencyError
from tfanet.export.web import onnxruntime_web as runtime
from tfanet.export.web.page import PAGE, prepare_page
from tfanet.runtime import Bundle, Predictor
from tfanet.runtime.bundle.contract import Tokenization
from tfanet.runtime.bundle.read import FILES
from tfanet.runtime.preprocess import plane_to_mask


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("by-hand") / "bundle", image_model())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of onnxruntime-web, with files of a few bytes."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    known = {}
    for name in runtime.SHA512:
        content = f"// {name}\n".encode()
        (folder / "dist" / name).write_bytes(content)
        known[name] = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setattr(runtime, "SHA512", known)
    return folder


def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program named npm in the place of all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_the_page_holds_the_bundle_unchanged_and_all_that_it_asks_for(
    by_hand: Path, package: Path, tmp_path: Path
) -> None:
    facts = prepare_page(tmp_path / "a" / "page", onnxruntime_web_folder=package)(by_hand)
    page = Path(facts["page"])
    assert facts["digest"] == Bundle.open(page / "bundle").digest == Bundle.open(by_hand).digest
    for name in FILES:
        assert (page / "bundle" / name).read_bytes() == (by_hand / name).read_bytes()
    assert {path.name for path in (page / "onnxruntime-web").iterdir()} == set(runtime.SHA512)
    assert facts["size"] == sum(p.stat().st_size for p in page.rglob("*") if p.is_file())
    for path in page.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, f"{path} cannot be read by a server"


def test_the_page_names_only_files_of_its_own() -> None:
    html = (PAGE / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]+)"', html)
    assert policy and "default-src 'none'" in policy[1]
    assert not re.search(r"https?:|unsafe-inline|'unsafe-eval'|\*", policy[1])
    names = set(re.findall(r'(?:src|href)="(?!data:)([^"]+)"', html))
    for path in PAGE.glob("*.mjs"):
        text = path.read_text()
        names |= set(re.findall(r'from "\./([^"]+)"', text))
        assert "://" not in text and "eval(" not in text, path
        for line in text.splitlines():
            assert len(line) <= 100, f"{path.name}: {line}"
    names.add("worker.mjs")
    assert names == {path.name for path in PAGE.iterdir()} - {"index.html"}
    assert "unicode_tables.mjs" in names
    identifiers = re.findall(r'\bid="([a-z]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_only_a_page_is_replaced_and_only_if_asked(
    by_hand: Path, package: Path, tmp_path: Path
) -> None:
    place = tmp_path / "page"
    prepare_page(place, onnxruntime_web_folder=package)(by_hand)
    (place / "style.css").write_text("old")
    with pytest.raises(InputError, match=r"holds a page: .* --overwrite"):
        prepare_page(place, onnxruntime_web_folder=package)
    prepare_page(place, onnxruntime_web_folder=package, overwrite=True)(by_hand)
    assert (place / "style.css").read_text() == (PAGE / "style.css").read_text()
    (place / "letters.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'letters\.txt', which is no page's"):
        prepare_page(place, onnxruntime_web_folder=package, overwrite=True)
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(InputError, match="symbolic link"):
        prepare_page(tmp_path / "link", onnxruntime_web_folder=package, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        prepare_page(tmp_path / "file", onnxruntime_web_folder=package)
    assert (place / "letters.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_bundle_that_cannot_run_there_is_refused(package: Path, tmp_path: Path) -> None:
    write = prepare_page(tmp_path / "page", onnxruntime_web_folder=package)
    bare = write_bundle(tmp_path / "bare", image_model(), scan={"function": "none", "calls": 1})
    with pytest.raises(InputError, match="export the model with --function sequential"):
        write(bare)
    with pytest.raises(InputError, match="lie in each other"):
        prepare_page(bare / "page", onnxruntime_web_folder=package)(bare)
    (bare / "image.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"image\.onnx has 0 bytes"):
        write(bare)
    assert not (tmp_path / "page").exists()


def test_files_of_another_version_are_refused(package: Path, tmp_path: Path) -> None:
    name = next(iter(runtime.SHA512))
    (package / "dist" / name).write_text("another")
    with pytest.raises(InputError, match=f"{name} in .* is not that of onnxruntime-web 1"):
        runtime.onnxruntime_web(package)
    (package / "dist" / name).unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read .*: name the folder"):
        runtime.onnxruntime_web(package)


def test_npm_brings_the_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runtime.onnxruntime_web(package)
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.add(package, "package")
    npm(tmp_path, monkeypatch, f'[ "$1 $2" = "pack onnxruntime-web@{runtime.VERSION}" ] || exit 9\n'
        f'cp {tmp_path}/p.tgz "$4"')  # fmt: skip
    assert runtime.onnxruntime_web() == expected


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no such host' >&2; exit 1", r"npm does not get .*\(no such host\): try again"),
        ("exit 0", r"\(no file\)"),
    ],
)
def test_npm_that_fails(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm(tmp_path, monkeypatch, script)
    with pytest.raises(MissingDependencyError, match=words):
        runtime.onnxruntime_web()


def test_a_package_of_npm_without_a_file(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/dist/other"), io.BytesIO())
    npm(tmp_path, monkeypatch, f'cp {tmp_path}/p.tgz "$4"')
    with pytest.raises(InputError, match="npm's package is not that of"):
        runtime.onnxruntime_web()


def test_the_command_line_checks_before_it_works(
    by_hand: Path,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page"
    web = ["web", "--bundle", str(by_hand), "--output", str(page)]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(web) == 3
    assert "no npm to fetch it" in capsys.readouterr().err
    assert main([*web, "--onnxruntime-web", str(package), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["page"] == str(page) and facts["onnxruntime_web"] == runtime.VERSION
    export = ["export", "--preset", "tfanet-tiny", "--output", str(tmp_path / "bundle")]
    assert main([*export, "--web", str(page), "--onnxruntime-web", str(package)]) == 1
    assert "holds a page" in capsys.readouterr().err
    assert main([*export, "--onnxruntime-web", str(package)]) == 1
    assert "belongs to a page: add --web DIR" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


# In Chromium, with the real onnxruntime-web


@pytest.fixture(scope="module")
def real_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web, fetched once."""
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed")
    try:
        files = runtime.onnxruntime_web()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("npm") / "package"
    (folder / "dist").mkdir(parents=True)
    for name, content in files.items():
        (folder / "dist" / name).write_bytes(content)
    return folder


def settled(page: Page) -> str:
    page.wait_for("['done', 'failed'].includes(document.body.dataset.state)")
    status: str = page.evaluate("document.querySelector('#status').innerText")
    return status


def check_page(
    bundle: Path, package: Path, tmp_path: Path, sentence: str, picture: Image.Image
) -> None:
    """Opens a picture, writes a sentence and saves the mask, as a user does, and compares it."""
    site, downloads, file = tmp_path / "site", tmp_path / "downloads", tmp_path / "picture.png"
    prepare_page(site, onnxruntime_web_folder=package)(bundle)
    downloads.mkdir()
    picture.save(file)
    with served(site) as address, chromium(tmp_path / "profile") as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        page = browser.page(address)
        page.wait_for("['ready', 'failed'].includes(document.body.dataset.state)")
        page.choose_file("#file", file)
        page.write("#sentence", sentence)
        status = settled(page)
        assert "of the picture" in status or "Nothing" in status, status
        facts = page.evaluate("document.querySelector('#facts').innerText")
        assert "WebAssembly" in facts or "WebGPU" in facts, facts
        times = page.evaluate("document.querySelector('#timings').innerText").split()
        assert {"preprocess", "text", "image", "mask", "total"} <= set(times)
        page.click("#save")
        end = time.monotonic() + 60
        while not (downloads / "mask.png").exists() and time.monotonic() < end:
            time.sleep(0.05)
        mask = np.asarray(Image.open(downloads / "mask.png").convert("L"))
        assert not browser.complaints()
        assert all(url.startswith((address, "blob:", "data:")) for url in browser.requested())
    predictor = Predictor(bundle)
    expected = predictor(picture, sentence)
    manifest = predictor.bundle.manifest
    _, values = plane_to_mask(
        expected.logits, mask.shape, manifest.preprocessing, manifest.postprocessing
    )
    away = np.abs(values - manifest.postprocessing.threshold)
    # Two orders of addition: what lies at the threshold itself may go either way.
    decided = away > 1e-4 * max(away.max(), 1e-3)
    assert set(np.unique(mask)) <= {0, 255} and decided.mean() > 0.9
    np.testing.assert_array_equal((mask > 0)[decided], expected.mask[decided])


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["stretched", "boxed", "word pieces", "no target", "instances"])
def test_the_mask_in_the_browser_is_that_of_python(
    kind: str, real_package: Path, tmp_path: Path
) -> None:
    made: dict[str, Callable[[Path], Path]] = {
        "stretched": lambda path: write_bundle(path, image_model(half=True)),
        "boxed": lambda path: write_bundle(
            path, image_model(), preprocessing=BOXED, postprocessing=PROBABILITIES
        ),
        "word pieces": lambda path: write_bundle(
            path,
            image_model(takes=["word_features"]),
            tokenizer=WORD_PIECES,
            text=Tokenization(8, 0, 101, 102, "bert-wordpiece", "cut"),
        ),
        "no target": lambda path: write_bundle(path, image_model(no_target=True)),
        "instances": lambda path: write_bundle(path, image_model(instances=4)),
    }
    bundle = made[kind](tmp_path / "bundle")
    check_page(bundle, real_package, tmp_path, "the réd dog, on 2 legs!", noise(3, (211, 157)))


@pytest.mark.full
def test_an_exported_model_runs_unchanged(
    bundle: Bundle, real_package: Path, tmp_path: Path
) -> None:
    """Its scans run as the functions in the file."""
    check_page(bundle.path, real_package, tmp_path, "the red circle", noise(4, (90, 130)))


@pytest.mark.full
def test_what_goes_wrong_is_said_on_the_page(
    by_hand: Path, real_package: Path, tmp_path: Path
) -> None:
    site, text = tmp_path / "site", tmp_path / "text.png"
    prepare_page(site, onnxruntime_web_folder=real_package)(by_hand)
    text.write_text("no picture")
    noise(5, (40, 30)).save(tmp_path / "picture.png")
    with served(site) as address, chromium(tmp_path / "profile") as browser:
        page = browser.page(address)
        page.wait_for("document.body.dataset.state === 'ready'")
        page.choose_file("#file", text)
        page.wait_for("document.querySelector('#status').innerText.includes('text.png is not')")
        page.choose_file("#file", tmp_path / "picture.png")
        page.write("#sentence", "x" * 5000)
        assert "has 5000 bytes, the limit is 4096" in settled(page)
        page.write("#sentence", "a dog")
        page.wait_for("document.body.dataset.state === 'done'")
        page.write("#sentence", "")
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Backspace", code="Backspace",
                  windowsVirtualKeyCode=8)  # fmt: skip
        page.wait_for("document.querySelector('#status').innerText === 'Say what to segment.'")
        page.close()
        graph = site / "bundle" / "text.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
        page = browser.page(address)
        page.wait_for("document.body.dataset.state === 'failed'")
        status = page.evaluate("document.querySelector('#status').innerText")
        assert "text.onnx is not what the manifest says: copy the page again" in status


@pytest.mark.full
def test_the_camera_s_frames_are_segmented(
    by_hand: Path, real_package: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    prepare_page(site, onnxruntime_web_folder=real_package)(by_hand)
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with served(site) as address, chromium(tmp_path / "profile", *flags) as browser:
        page = browser.page(address)
        page.wait_for("document.body.dataset.state === 'ready'")
        page.write("#sentence", "the green circle")
        page.click("#camera")
        page.wait_for("!document.querySelector('#save').disabled")
        assert page.evaluate("document.querySelector('#picture').width") > 100
        before = page.evaluate("document.querySelector('#timings').innerText")
        page.wait_for(f"document.querySelector('#timings').innerText !== {json.dumps(before)}")
        page.click("#camera")
        assert page.evaluate("document.querySelector('#camera').ariaPressed") == "false"
        assert not browser.complaints()


@pytest.mark.full
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(
    width: int, scheme: str, by_hand: Path, real_package: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    prepare_page(site, onnxruntime_web_folder=real_package)(by_hand)
    noise(6, (1400, 900)).save(tmp_path / "picture.png")
    with served(site) as address, chromium(tmp_path / "profile") as browser:
        page = browser.page(address, width, 800, scheme)
        page.wait_for("document.body.dataset.state === 'ready'")
        page.choose_file("#file", tmp_path / "picture.png")
        page.write("#sentence", "the brown dog that lies behind the second chair from the left")
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(tmp_path / "page.png", whole=True)
        with Image.open(tmp_path / "page.png") as shot:
            corner = shot.convert("L").getpixel((2, 2))
        assert isinstance(corner, int) and (corner > 200) == (scheme == "light")
