"""Bundles and files on disk: nothing of the user's is lost, whatever stands there or is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_engines import add, record

from tfanet import files as whole
from tfanet.errors import GateError, InputError, StorageError
from tfanet.export.engines.store import store_engine
from tfanet.runtime import Bundle, BundleError
from tfanet.runtime.bundle.leftovers import engine_file, leftovers
from tfanet.runtime.bundle.read import verify
from tfanet.runtime.bundle.write import (
    check_folder,
    check_output,
    check_target,
    new_bundle,
    new_file,
    new_folder,
)

SUPPORT = Path(__file__).parents[1] / "support"


def fill(folder: Path, source: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def other(bundle, tmp_path) -> Path:
    """A bundle that differs from `bundle`."""
    folder = Path(shutil.copytree(bundle, tmp_path / "other"))
    data = json.loads((folder / "manifest.json").read_text())
    data["postprocessing"]["threshold"] = 0.5
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "content",
    [
        {"manifest.json": '{"manifest_version": 3, "name": "a web extension"}'},
        {"manifest.json": "{}", "pictures/a.png": "mine"},
        {"manifest.json": "not JSON"},
        {"image.onnx": "mine", "text.onnx": "mine"},
        {"notes.txt": "mine"},
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_s_is_never_replaced(bundle, tmp_path, content, overwrite):
    folder = tmp_path / "folder"
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = files(folder)
    with pytest.raises(InputError, match="holds no bundle"):
        check_target(folder, overwrite=overwrite)
    with (
        pytest.raises(InputError, match="holds no bundle"),
        new_bundle(folder, overwrite=overwrite) as work,
    ):
        fill(work, bundle)
    assert files(folder) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "model.onnx", "timing.json", "sub/a", ".hidden", "image.mine.engine"]
)
def test_a_bundle_with_a_file_of_somebody_s_is_not_replaced(bundle, other, name):
    (other / name).parent.mkdir(exist_ok=True)
    (other / name).write_text("mine")
    before = files(other)
    with pytest.raises(InputError, match=f"holds '{name.split('/')[0]}', which is not the bundle"):
        check_target(other, overwrite=True)
    assert files(other) == before
    assert [p.name for p in leftovers(other)["foreign"]] == [name.split("/")[0]]


def test_a_file_that_comes_at_the_last_moment_is_kept(bundle, other, tmp_path, monkeypatch):
    """Between the last look at the old bundle and its removal."""
    exchange = whole.renameat2

    def late(one, another, flag):
        (other / "mine.txt").write_text("mine")
        return exchange(one, another, flag)

    monkeypatch.setattr(whole, "renameat2", late)
    with (
        pytest.warns(UserWarning, match="came into the old bundle at the last moment"),
        new_bundle(other, overwrite=True) as work,
    ):
        fill(work, bundle)
    assert files(other) == files(bundle)
    (kept,) = tmp_path.glob(".other.*.partial")
    assert files(kept) == {"mine.txt": b"mine"}
    check_target(other, overwrite=True)
    assert files(kept) == {"mine.txt": b"mine"}


def test_a_bundle_is_replaced_with_overwrite_only(bundle, other, tmp_path):
    before = files(other)
    with pytest.raises(InputError, match=r"holds a bundle: .*--overwrite"):
        check_target(other)
    assert files(other) == before
    with new_bundle(other, overwrite=True) as work:
        fill(work, bundle)
        assert files(other) == before
    assert files(other) == files(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


def test_a_damaged_bundle_and_an_empty_folder_may_be_replaced(bundle, other, tmp_path):
    (other / "image.onnx").unlink()
    (tmp_path / "empty").mkdir()
    for name, overwrite in (("other", True), ("empty", False), ("deep/er", False)):
        with new_bundle(tmp_path / name, overwrite=overwrite) as work:
            fill(work, bundle)
        assert files(tmp_path / name) == files(bundle)


def test_what_appears_during_the_work_is_not_replaced(bundle, other, tmp_path):
    target = tmp_path / "target"
    writer = new_bundle(target)
    fill(writer.__enter__(), bundle)
    shutil.copytree(other, target)
    with pytest.raises(InputError, match="holds a bundle"):
        writer.__exit__(None, None, None)
    assert files(target) == files(other)
    writer = new_file(tmp_path / "file")
    writer.__enter__().write_text("new")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists: name another file"):
        writer.__exit__(None, None, None)
    assert (tmp_path / "file").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "other", "target", "file"}


@pytest.mark.parametrize("dangling", [True, False])
@pytest.mark.parametrize("check", [check_target, check_output])
def test_links_are_not_replaced(other, tmp_path, check, dangling):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere" if dangling else other)
    with pytest.raises(InputError, match=r"link is a symbolic link to .*: name the place"):
        check(link, overwrite=True)
    with pytest.raises(InputError, match=r"image.onnx is not a directory: name another place"):
        check(other / "image.onnx" / "x")


def test_places_that_cannot_be_replaced(bundle, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is a mount point"):
        check_target("/proc", overwrite=True)
    with pytest.raises(InputError, match="more than 200 bytes"):
        check_target(tmp_path / ("é" * 101))
    for bad in ("", "a\0b", "a\udfff\ud800b"):
        with pytest.raises(InputError, match="name a path"):
            check_output(bad)
    monkeypatch.chdir(bundle)
    with pytest.raises(InputError, match="holds the current directory"):
        check_target(".", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_target(bundle / "image.onnx", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_folder(bundle / "image.onnx")
    with pytest.raises(InputError, match="its directory does not exist"):
        check_output(tmp_path / "no" / "file")
    with pytest.raises(InputError, match="exists: name another file, or give --overwrite"):
        check_output(bundle / "image.onnx")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StorageError, match="nothing may be written into"):
        check_target(tmp_path / "deep" / "bundle")


@pytest.mark.parametrize("kind", ["replace", "fallback", "engine"])
def test_a_kill_at_any_step_leaves_a_whole_bundle(bundle, other, tmp_path, kind):
    """And running again leaves nothing of the killed run."""
    root = tmp_path / "steps"
    root.mkdir()
    bundle.rename(root / "new")
    other.rename(root / "old")
    if kind == "engine":
        for name in ("tensorrt-rtx-fp16", "tensorrt-rtx-bf16"):
            add(root / "old", name, b"a plan")
    command = [sys.executable, SUPPORT / "kill_steps.py", kind, root]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


def test_two_engines_added_at_once_both_stay(bundle):
    for turn in range(6):
        children = []
        ready, go = os.pipe()
        for name in ("tensorrt-rtx-fp16", "tensorrt-rtx-bf16"):
            child = os.fork()
            if child == 0:
                os.close(go)
                os.read(ready, 1)  # both begin when the parent closes the pipe
                try:
                    add(bundle, name, bytes([turn]))
                finally:
                    os._exit(sys.exc_info()[0] is not None)
            children.append(child)
        os.close(go)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        os.close(ready)
        opened = Bundle.open(bundle)
        assert len(opened.manifest.engines) == 2 and len(opened.manifest.files) == 7
        for engine in opened.manifest.engines:
            for graph, file in engine["files"].items():
                assert opened.read(file).endswith(bytes([turn]))
                assert file == engine_file(
                    graph, engine["name"], opened.manifest.files[file]["sha256"]
                )
        assert leftovers(bundle) == {"killed": [], "foreign": []}


def test_an_engine_of_other_graphs_is_not_stored(bundle):
    """The bundle is replaced while the engine is built, by one with another graph."""
    opened = Bundle.open(bundle)
    data = json.loads((bundle / "manifest.json").read_text())
    shutil.copyfile(bundle / "text.onnx", bundle / "image.onnx")
    data["files"]["image.onnx"] = data["files"]["text.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(data))
    before = files(bundle)
    with new_folder(bundle / "tensorrt-rtx-fp16") as folder:
        for kind in ("text", "image"):
            (folder / f"{kind}.engine").write_bytes(b"plan")
        with pytest.raises(InputError, match="was replaced while the engine was built"):
            store_engine(opened, folder, record("tensorrt-rtx-fp16"))
    assert files(bundle) == before


def test_a_damaged_engine_is_mended_by_building_it_again(bundle):
    names = add(bundle, "tensorrt-rtx-fp16", b"plan").manifest.engines[0]["files"]
    (bundle / names["text.onnx"]).unlink()
    (bundle / names["image.onnx"]).write_bytes(b"damaged")
    with pytest.raises(BundleError):
        Bundle.open(bundle)
    opened = Bundle.open(bundle, engines=False)
    assert not opened.holds_engine("tensorrt-rtx-fp16")
    opened.check_engines(besides="tensorrt-rtx-fp16")
    with pytest.raises(BundleError, match=r"build that engine again \(`tfanet engine --target "):
        opened.check_engines(besides="tensorrt-rtx-bf16")
    mended = add(bundle, "tensorrt-rtx-fp16", b"plan")
    assert mended.holds_engine("tensorrt-rtx-fp16")


def test_a_living_writer_is_left_alone(bundle, other, tmp_path):
    target = tmp_path / "target"
    with new_bundle(target) as work:
        assert leftovers(target)["killed"] == []
        check_target(target)
        assert work.is_dir()
        fill(work, bundle)
    living = other / ".tensorrt-rtx-fp16.abcdefgh.partial"
    living.mkdir()
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="an engine is being built in"):
        check_target(other, overwrite=True)
    os.close(handle)
    assert leftovers(other)["killed"] == [living]
    check_target(other, overwrite=True)


def test_only_what_a_writer_left_is_removed(bundle, tmp_path):
    ours = [".target.abcdefgh.partial", ".target.1234.partial"]
    (tmp_path / ours[0]).mkdir()
    fill(tmp_path / ours[0], bundle)
    (tmp_path / ours[1]).write_text("half a file")
    theirs = [
        ".target.abcdefgh.partial.txt", ".target.notes.partial", ".targetabcdefgh.partial",
        ".other.abcdefgh.partial", ".target.backup01.partial",
    ]  # fmt: skip
    for name in theirs[:-1]:
        (tmp_path / name).write_text("mine")
    (tmp_path / theirs[-1]).mkdir()
    (tmp_path / theirs[-1] / "diary.txt").write_text("mine")
    assert sorted(p.name for p in leftovers(tmp_path / "target")["killed"]) == sorted(ours)
    check_target(tmp_path / "target")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*theirs, "bundle"])


def test_verify_names_all_that_differs(bundle):
    digest = Bundle.open(bundle).digest
    assert verify(bundle, digest=digest).digest == digest
    with pytest.raises(GateError, match=r"has the digest .*, expected 0{64}: it is another bundle"):
        verify(bundle, digest="0" * 64)
    (bundle / "text.onnx").unlink()
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(GateError, match=r"text.onnx is missing.*; .*tokenizer.json has 2 bytes"):
        verify(bundle)
