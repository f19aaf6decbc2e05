"""The examples, built as a user would: from the installed files, with CMake and with pkg-config."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import ort_library
from hand_made import image_model, write_bundle
from PIL import Image

from tfanet.runtime import Predictor

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "cpp"
PROGRAMS = ["segment", "segment_c"]
TEXT = "the red circle"


@pytest.fixture(scope="session")
def examples(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built programs."""
    folder = tmp_path_factory.mktemp("examples")
    configure = ["cmake", "-S", EXAMPLES, "-B", folder, f"-DCMAKE_PREFIX_PATH={sdk}"]
    result = subprocess.run(configure, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "install their headers" in result.stdout:
        pytest.skip("the examples need libpng and libjpeg: install libpng-dev and libjpeg-dev")
    assert result.returncode == 0, result.stdout
    subprocess.run(["cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def segment(examples: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [examples / program, *map(str, arguments)],
            env=os.environ | {"TFANET_ONNXRUNTIME": str(ort_library())},
            capture_output=True,
            text=True,
        )

    return run


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, len(mode) if mode != "L" else 1), np.uint8)
    return Image.fromarray(small.squeeze(), mode).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("program", PROGRAMS)
def test_masks_equal_those_of_python(
    program: str, segment: Callable, shared_bundle: Path, python: Predictor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    files = []
    for mode in ("RGB", "RGBA", "L"):
        picture(mode).save(tmp_path / f"{mode}.png")
        files.append(tmp_path / f"{mode}.png")
    picture().quantize(16).save(tmp_path / "palette.png")
    files.append(tmp_path / "palette.png")
    for held in range(1, 9):
        exif[0x0112] = held
        # Without chroma subsampling, whose interpolation differs between versions of libjpeg.
        picture().save(tmp_path / f"{held}.jpg", exif=exif, quality=95, subsampling=0)
        files.append(tmp_path / f"{held}.jpg")
    mixed = 0  # masks that are neither empty nor full; grey pictures have none
    for file in files:
        result = segment(program, shared_bundle, file, TEXT, tmp_path / "mask.png")
        assert result.returncode == 0, result.stderr
        assert "mask.png: score " in result.stdout
        expected = python(file, TEXT).mask
        found = np.asarray(Image.open(tmp_path / "mask.png")) == 255
        assert found.shape == expected.shape, file
        # A JPEG decoder may round a pixel differently.
        assert (found != expected).mean() <= (0.002 if file.suffix == ".jpg" else 0), file
        mixed += bool(expected.any() and not expected.all())
    assert mixed == len(files) - 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_objects_and_their_words_equal_those_of_python(
    program: str, segment: Callable, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", image_model(instances=6))
    picture().save(tmp_path / "good.png")
    text = "the umbrella, Unbelievably"
    result = segment(program, bundle, tmp_path / "good.png", text, tmp_path / "mask.png")
    assert result.returncode == 0, result.stderr
    expected = Predictor(bundle, threads=1)(tmp_path / "good.png", text).instances
    lines = result.stdout.splitlines()[1:]
    assert expected
    for line, one in zip(lines, expected, strict=True):
        parts = [("object, relevance", one.relevance), *one.words]
        assert line == ", ".join(f"{name} {value:g}" for name, value in parts)


def test_operator_library_is_installed_beside(
    segment: Callable, scan_bundle: Path, tmp_path: Path
) -> None:
    picture().save(tmp_path / "good.png")
    result = segment("segment", scan_bundle, tmp_path / "good.png", TEXT, tmp_path / "mask.png")
    assert result.returncode == 0, result.stderr
    expected = Predictor(scan_bundle, threads=1)(tmp_path / "good.png", TEXT).mask
    found = np.asarray(Image.open(tmp_path / "mask.png")) == 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_mistakes_get_one_line(
    program: str, segment: Callable, shared_bundle: Path, tmp_path: Path
) -> None:
    good, mask = tmp_path / "good.png", tmp_path / "mask.png"
    picture().save(good)
    picture().save(tmp_path / "good.jpg")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:100])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (1, 50)).save(tmp_path / "thin.png")
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "none", good, TEXT, mask], "is not a bundle directory"),
        ([shared_bundle, tmp_path / "none.png", TEXT, mask], "No such file"),
        ([shared_bundle, tmp_path / "text.png", TEXT, mask], "is no PNG or JPEG file"),
        ([shared_bundle, tmp_path / "cut.png", TEXT, mask], "cut.png"),
        ([shared_bundle, tmp_path / "cut.jpg", TEXT, mask], "cut.jpg"),
        ([shared_bundle, tmp_path / "thin.png", TEXT, mask], "each side must be 2 or more"),
        ([shared_bundle, tmp_path / "large.png", TEXT, mask], "more than 64,000,000 pixels"),
        ([shared_bundle, good, "", mask], "the sentence is empty"),
        ([shared_bundle, good, os.fsdecode(b"red \xff"), mask], "is not valid UTF-8"),
        ([shared_bundle, good, TEXT, tmp_path / "none" / "mask.png"], "mask.png"),
        ([shared_bundle, good, TEXT, mask, "gpu"], "backend is 'gpu': choose auto, tensorrt,"),
        ([shared_bundle], "usage:"),
    ]
    for arguments, part in cases:
        result = segment(program, *arguments)
        assert result.returncode == 1, arguments
        assert part in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_backend_by_name(
    program: str, segment: Callable, shared_bundle: Path, tmp_path: Path
) -> None:
    picture().save(tmp_path / "good.png")
    arguments = shared_bundle, tmp_path / "good.png", TEXT, tmp_path / "mask.png"
    assert segment(program, *arguments, "onnxruntime-cpu").returncode == 0
    result = segment(program, *arguments, "tensorrt")
    assert result.returncode == 3
    assert "holds no tensorrt engine: `tfanet engine --bundle" in result.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_digest(program: str, segment: Callable, shared_bundle: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "good.png")
    arguments = shared_bundle, tmp_path / "good.png", TEXT, tmp_path / "mask.png"
    digest = hashlib.sha256((shared_bundle / "manifest.json").read_bytes()).hexdigest()
    assert segment(program, *arguments).stdout.endswith(f" ms, bundle {digest}\n")
    assert segment(program, *arguments, "auto", digest).returncode == 0
    result = segment(program, *arguments, "auto", "0" * 64)
    assert result.returncode == 1
    assert f"manifest.json has the digest {digest}, expected 0000" in result.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_onnxruntime(
    program: str, examples: Path, shared_bundle: Path, tmp_path: Path
) -> None:
    picture().save(tmp_path / "good.png")
    result = subprocess.run(
        [examples / program, shared_bundle, tmp_path / "good.png", TEXT, tmp_path / "mask.png"],
        env=os.environ | {"TFANET_ONNXRUNTIME": "/no/such/library.so"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 3
    assert "ONNX Runtime cannot be loaded (/no/such/library.so" in result.stderr


def test_server(examples: Path, shared_bundle: Path, python: Predictor, tmp_path: Path) -> None:
    picture().save(tmp_path / "good.png")
    texts = ["red", "a blue dog", "the left one", "2"]
    requests = [f"{tmp_path / 'good.png'}\t{text}\t{tmp_path / text}.png" for text in texts]
    requests[2:2] = ["not a request", f"{tmp_path / 'none.png'}\tred\tx.png", "\t\t"]
    result = subprocess.run(
        [examples / "serve", shared_bundle, "3"],
        env=os.environ | {"TFANET_ONNXRUNTIME": str(ort_library())},
        input="\n".join(requests),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = sorted(result.stdout.splitlines())
    assert len(lines) == len(requests)
    assert sum(line.startswith("error: ") for line in lines) == 3
    for text in texts:
        expected = python(tmp_path / "good.png", text)
        found = np.asarray(Image.open(tmp_path / f"{text}.png")) == 255
        np.testing.assert_array_equal(found, expected.mask)
        answer = next(line for line in lines if line.startswith(f"{tmp_path / text}.png\t"))
        assert float(answer.split("\t")[1]) == pytest.approx(expected.score, abs=2e-6)


def test_pkg_config(sdk: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    folder = next(sdk.rglob("tfanet.pc")).parent
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "tfanet"],
        env=os.environ | {"PKG_CONFIG_PATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    source = tmp_path / "main.c"
    source.write_text(
        '#include <stdio.h>\n#include "tfanet.h"\nint main(void) { puts(tfanet_version()); }\n'
    )
    program = tmp_path / "main"
    subprocess.run(["cc", source, "-o", program, *flags, f"-Wl,-rpath,{folder.parent}"], check=True)
    version = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert version.strip() == subprocess.run(
        ["pkg-config", "--modversion", "tfanet"],
        env=os.environ | {"PKG_CONFIG_PATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()  # fmt: skip


DECLARED = """
#include <stdint.h>
#include "tfanet.hpp"
struct Frame { const uint8_t* pixels; int32_t width, height; int64_t stride; };
void show(tfanet::Span<const uint8_t>, float);
void list(std::string_view, float);
void die(const char*);
void report(const char*);
extern tfanet::Prediction prediction;
void use(const uint8_t*, int32_t, int32_t);
using Video = std::vector<Frame>;
extern float *device_pictures, *device_logits;
extern void* stream;
void launch_what_reads(const float*, void*);
"""
FUNCTION = """
void example_%d(const uint8_t* pixels, int32_t width, int32_t height, const Video& video) {
(void)pixels; (void)width; (void)height; (void)video;
%s
}
"""


def test_code_in_the_documentation_compiles(sdk: Path, tmp_path: Path) -> None:
    root = EXAMPLES.parents[1]
    blocks = []
    for page in (root / "README.md", root / "runtime" / "cpp" / "README.md"):
        blocks += re.findall(r"^```cpp\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    header = (sdk / "include" / "tfanet.h").read_text()
    blocks.append("\n".join(re.findall(r"^ \*   (.*)$", header.split("*/")[0], flags=re.M)))
    assert len(blocks) == 5
    code = [block.replace('#include "tfanet.hpp"\n', "") for block in blocks]
    source = tmp_path / "blocks.cpp"
    source.write_text(DECLARED + "".join(FUNCTION % one for one in enumerate(code)))
    # The C example names a field in an initialiser, which to C++17 is an extension.
    command = ["c++", "-std=gnu++17", "-Wall", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, f"-I{sdk / 'include'}", source], check=True)
