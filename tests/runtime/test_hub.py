"""Bundles by name: shipped, in a folder, in the hub's cache, and over a stand-in of its API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_stand_in import TOKEN, serving

from tfanet import Predictor
from tfanet.cli import main
from tfanet.errors import InputError, MissingDependencyError
from tfanet.runtime import Bundle, BundleError
from tfanet.runtime.bundle.read import MANIFEST
from tfanet.runtime.hub import push, write_repository
from tfanet.runtime.model_card import model_card
from tfanet.runtime.shipped import shipped_bundle

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def filled(hub, shared_bundle):
    hub.repositories["ada/red-things"] = {"main": files_of(shared_bundle)}
    return hub


def files_of(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def in_cache(bundle: Path, cache: Path) -> Path:
    """The bundle as the hub's cache holds it."""
    root = cache / "models--ada--red-things"
    snapshot = root / "snapshots" / ("0" * 40)
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(bundle.iterdir())):
        shutil.copyfile(path, root / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


def test_a_shipped_name_and_a_folder(shared_bundle):
    with Predictor.from_pretrained("tfanet-tiny", threads=1) as predictor:
        assert predictor.bundle.path == shipped_bundle("tfanet-tiny")
    for folder in (shared_bundle, str(shared_bundle)):
        assert Predictor.from_pretrained(folder).bundle.path == shared_bundle
        with pytest.raises(InputError, match="is a folder: only repositories have them"):
            Predictor.from_pretrained(folder, revision="main")
    with pytest.raises(InputError, match="is shipped with tfanet"):
        Predictor.from_pretrained("tfanet-tiny", revision="main")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tfanet-tiney", "did you mean 'tfanet-tiny'"),
        ("TFANet_tiny", "did you mean 'tfanet-tiny'"),
        ("zzz", "give one that is shipped (tfanet-tiny"),
        ("a/b/c", "there is no bundle 'a/b/c'"),
        ("../x", "there is no bundle '../x'"),
        ("", "there is no bundle ''"),
        (Path("no/folder"), "there is no bundle 'no/folder'"),
    ],
)
def test_a_name_that_does_not_exist(hub, name, words):
    if name == "":
        name = "\n"
        words = "there is no bundle"
    with pytest.raises(InputError) as caught:
        Predictor.from_pretrained(name)
    assert words in str(caught.value) and hub.asked == []


def test_a_repository_is_downloaded_once(filled, shared_bundle, tmp_path):
    expected = Predictor(shared_bundle)(PICTURE, "red")
    options = {"cache_dir": tmp_path / "here", "digest": Bundle.open(shared_bundle).digest}
    with Predictor.from_pretrained("ada/red-things", **options) as predictor:
        assert predictor(PICTURE, "red") == expected
        assert predictor.bundle.path.is_relative_to(tmp_path / "here")

    def downloads() -> list[str]:
        return [asked for asked in filled.asked if re.match("GET .*/resolve/", asked)]

    assert len(downloads()) == 4
    Predictor.from_pretrained("ada/red-things", **options)
    assert len(downloads()) == 4
    before = len(filled.asked)
    Predictor.from_pretrained("ada/red-things", local_files_only=True, **options)
    assert len(filled.asked) == before


def test_a_bundle_in_the_hubs_cache(shared_bundle, tmp_path):
    snapshot = in_cache(shared_bundle, tmp_path)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    with Predictor.from_pretrained("ada/red-things", **options) as predictor:
        assert predictor.bundle.path == snapshot
        assert predictor(PICTURE, "red") == Predictor(shared_bundle)(PICTURE, "red")
    (snapshot.parents[1] / "blobs" / "blob0").write_bytes(b"other")
    with pytest.raises(BundleError, match="truncated or altered"):
        Predictor.from_pretrained("ada/red-things", **options)
    with pytest.raises(MissingDependencyError, match="not whole in the hub's cache"):
        Predictor.from_pretrained("ada/blue-things", **options)


@pytest.mark.parametrize("target", ["outside", "absolute", "blobs", "deep"])
def test_links_lead_nowhere_but_to_the_caches_own_files(shared_bundle, tmp_path, target):
    snapshot = in_cache(shared_bundle, tmp_path / "cache")
    root, link = snapshot.parents[1], snapshot / "image.onnx"
    content = link.read_bytes()
    link.unlink()
    (tmp_path / "secret").write_bytes(content)
    if target == "outside":
        link.symlink_to("../../../../secret")
    elif target == "absolute":
        link.symlink_to(tmp_path / "secret")
    elif target == "blobs":  # the folder itself leads outside
        shutil.move(root / "blobs", tmp_path / "blobs")
        (root / "blobs").symlink_to(tmp_path / "blobs")
        (tmp_path / "blobs" / "image").write_bytes(content)
        link.symlink_to("../../blobs/image")
    else:
        (root / "blobs" / "image").symlink_to(tmp_path / "secret")
        link.symlink_to("../../blobs/image")
    with pytest.raises(BundleError, match="is a link or no regular file"):
        Predictor(snapshot)


def test_revisions(filled, bundle, edit):
    edit(lambda manifest: manifest["model"].update(preset="second"))
    filled.repositories["ada/red-things"]["next"] = files_of(bundle)
    for revision, model in ((None, "by-hand"), ("next", "second")):
        predictor = Predictor.from_pretrained("ada/red-things", revision=revision)
        assert predictor.info()["model"] == model
    with pytest.raises(InputError, match="has no revision 'later'"):
        Predictor.from_pretrained("ada/red-things", revision="later")


def refused(name: str, *words: str, kind: type = InputError, **options) -> None:
    with pytest.raises(kind) as caught:
        Predictor.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_repositories_that_are_none(filled, monkeypatch):
    good = filled.repositories["ada/red-things"]["main"]
    filled.repositories["ada/notes"] = {"main": {"README.md": b"hello"}}
    refused("ada/notes", "ada/notes holds no manifest.json", "tfanet push")
    filled.repositories["ada/half"] = {"main": {MANIFEST: good[MANIFEST]}}
    refused("ada/half", "ada/half holds no manifest.json, or not all that it lists")
    damaged = {**good, "image.onnx": good["image.onnx"][:-1] + b"\0"}
    filled.repositories["ada/damaged"] = {"main": damaged}
    refused("ada/damaged", "image.onnx does not match its SHA-256", kind=BundleError)
    refused("ada/red-things", "another bundle", kind=BundleError, digest="0" * 64)
    refused("ada/red-thing", "no repository ada/red-thing", "did you mean 'ada/red-things'")
    refused("eve/nothing", "no repository eve/nothing", "check its name")
    filled.repositories |= {"ada/secret": {"main": good}, "ada/gated": {"main": good}}
    filled.private.add("ada/secret")
    refused("ada/secret", "or it is private", "hf auth login", token=False)
    filled.gated.add("ada/gated")
    refused("ada/gated", "is gated: ask for access", token=False)
    for name in ("ada/secret", "ada/gated"):
        Predictor.from_pretrained(name, token=TOKEN)


def test_names_that_leave_the_folder(filled, bundle, edit):
    def change(manifest):
        record = {"name": "e", "target": "tensorrt", "precision": "fp16", "library": "x"}
        files = {"image.onnx": "../../../evil", "text.onnx": "t"}
        record |= {"version": "1", "profile": {}, "compute": [], "files": files}
        manifest["engines"].append(record)
        facts = manifest["files"]["image.onnx"]
        manifest["files"] |= {"../../../evil": facts, "t": facts}

    edit(change)
    filled.repositories["ada/evil"] = {"main": files_of(bundle)}
    refused("ada/evil", "'../../../evil' leaves the bundle", kind=BundleError)


@pytest.mark.full  # it is tried again for 20 s
def test_a_hub_that_is_not_there(hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    refused("ada/red-things", "cannot be reached", kind=MissingDependencyError)


def test_push_and_back(hub, shared_bundle, capsys, tmp_path):
    argv = ["push", "--bundle", str(shared_bundle), "--repo", "ada/new", "--licence", "mit"]
    assert main([*argv, "--private", "--revision", "v1", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert "ada/new" in hub.private and hub.repositories["ada/new"]["main"] == {}
    assert done["files"] == ["README.md", MANIFEST, "image.onnx", "text.onnx", "tokenizer.json"]
    sent = hub.repositories["ada/new"]["v1"]
    assert {k: v for k, v in sent.items() if k != "README.md"} == files_of(shared_bundle)
    with Predictor.from_pretrained("ada/new", revision="v1", digest=done["digest"]) as predictor:
        assert predictor(PICTURE, "red") == Predictor(shared_bundle)(PICTURE, "red")
    folder = tmp_path / "dry"
    before = len(hub.asked)
    assert main([*argv, "--dry-run", str(folder)]) == 0
    assert files_of(folder) == sent and len(hub.asked) == before
    with Predictor(folder) as predictor:
        assert predictor.bundle.digest == done["digest"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--repo": "new"}, "repository is 'new': give owner/name"),
        ({"--repo": "a/b/c"}, "give owner/name"),
        ({"--licence": None}, "licence of these weights is not known: give it"),
        ({"--licence": "MIT License"}, "licence is 'MIT License'"),
        ({"--bundle": "/nowhere"}, "/nowhere is not a bundle directory"),
        ({"--dry-run": "{full}"}, "is not empty: name a new folder"),
        ({"--dry-run": "d", "--revision": "x"}, "--revision is for an upload"),
        ({"--dry-run": "d", "--private": ""}, "--private is for an upload"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    hub, shared_bundle, capsys, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    given = {"--bundle": str(shared_bundle), "--repo": "ada/new", "--licence": "mit", **options}
    argv = ["push"]
    for name, value in given.items():
        if value is not None:
            argv += [name] if value == "" else [name, value.format(full=tmp_path / "full")]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert hub.asked == [] and [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_push_that_the_hub_refuses(hub, shared_bundle, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError) as caught:
        push(shared_bundle, "ada/new", licence="mit")
    assert "ada/new" in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_line_asks_the_hub_of_the_environment(hub, shared_bundle, tmp_path):
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "tfanet", "push", "--bundle", str(shared_bundle)]
    done = subprocess.run(
        [*command, "--repo", "ada/cli", "--licence", "other"],
        env={**os.environ, **variables, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/ada/cli/commit/" in done.stdout
    assert MANIFEST in hub.repositories["ada/cli"]["main"]


def test_the_model_card_is_made_from_the_manifest(tmp_path):
    folder = tmp_path / "card"
    write_repository(shipped_bundle("tfanet-tiny"), "ada/tiny", folder)
    card = (folder / "README.md").read_text()
    head, text = re.fullmatch(r"---\n(.*?)---\n(.*)", card, flags=re.S).groups()
    facts = yaml.safe_load(head)
    assert facts["license"] == "apache-2.0" and facts["library_name"] == "tfanet"
    assert facts["pipeline_tag"] == "image-segmentation"
    bundle = Bundle.open(folder)
    assert bundle.digest in text and 'from_pretrained("ada/tiny")' in text
    for case in bundle.manifest.parity["cases"]:
        assert f"| {case['name']} | {case['backend']} | {case['max_rel_error']:.1e} |" in text
    for name, file in bundle.manifest.files.items():
        assert f"| {name} | {file['size']:,} | `{file['sha256']}` |" in text


def test_a_card_tells_certificate_engines_and_times(bundle, edit):
    accuracy = {
        "fp32": {"mIoU": 91.5}, "quantised": {"mIoU": 91.25}, "drop": {"mIoU": 0.25},
        "max_drop": {"mIoU": 0.5}, "data": {"dataset": "a|b <script>", "split": "val", "count": 7},
    }  # fmt: skip
    edit(
        lambda manifest: manifest["parity"].update(
            certificate={"precision": "int8", "accuracy": accuracy}
        )
    )
    timing = {"milliseconds": {"fp32": 20.0, "int8": 10.55}, "machine": "x86_64", "threads": 2}
    (bundle / "timing.json").write_text(json.dumps(timing))
    text = model_card(Bundle.open(bundle), "ada/x", "mit")
    assert "| mIoU | 91.50 | 91.25 | 0.25 | 0.5 |" in text
    assert "dataset a\\|b &lt;script>, split val, count 7" in text
    assert "| int8 | 10.6 |" in text or "| int8 | 10.5 |" in text
    assert "on x86_64, 2 threads" in text and "It was not compared." in text
    (bundle / "timing.json").write_text("[")
    assert "## Times" not in model_card(Bundle.open(bundle), "ada/x", "mit")
