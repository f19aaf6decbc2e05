"""`prepare_page`: a folder that any web server can serve, with a bundle that runs in the browser.

index.html, *.mjs, style.css    ours, as they lie in export/web/page: no build step
bundle/                         the bundle's manifest, graphs and tokenizer, unchanged
onnxruntime-web/                what runs the graphs
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfanet import files
from tfanet.errors import InputError
from tfanet.export.web.onnxruntime_web import VERSION, onnxruntime_web
from tfanet.runtime.bundle.read import FILES, MANIFEST, Bundle
from tfanet.runtime.bundle.write import check_folder, new_folder
from tfanet.runtime.tokenizer import tokenizer_of

__all__ = ["PAGE", "prepare_page"]

PAGE = Path(__file__).with_name("page")
BUNDLE, RUNTIME = "bundle", "onnxruntime-web"
OWN = {BUNDLE, RUNTIME, *(path.name for path in PAGE.iterdir())}  # in a page's folder


def prepare_page(
    output: str | Path, *, onnxruntime_web_folder: str | Path | None = None, overwrite: bool = False
) -> Callable[[str | Path], dict[str, Any]]:
    """What writes a page of a bundle into `output`; all else that it needs is fetched now.

    Args:
        output: the folder, which appears whole or not at all. overwrite: replace a page there.
        onnxruntime_web_folder: see `onnxruntime_web`.

    Returns:
        A function that takes a bundle's folder and gives the page's facts: its folder, its size in
        bytes, the version of onnxruntime-web and the bundle's digest.

    Raises:
        InputError: where something else than a page stands there, or a page without `overwrite`;
            and as `onnxruntime_web`. The function: also for a bundle that is damaged, that lies
            around the page, or whose scans are not in standard operators.
    """
    target = check_folder(output)
    _check_place(target, overwrite)
    runtime = onnxruntime_web(onnxruntime_web_folder)

    def write(path: str | Path) -> dict[str, Any]:
        bundle = Bundle.open(path, engines=False)
        _check_bundle(bundle, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as work:
            _fill(work, bundle, runtime)
            size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            _check_place(target, overwrite)  # again: it may have come meanwhile
            _move_into_place(work, target)
        return {
            "page": str(target),
            "size": size,
            "onnxruntime_web": VERSION,
            "digest": bundle.digest,
        }

    return write


def _check_place(target: Path, overwrite: bool) -> None:
    if target.is_symlink():
        raise InputError(f"{target} is a symbolic link: name the folder that it leads to")
    if not target.exists() or not any(target.iterdir()):
        return
    foreign = [path.name for path in sorted(target.iterdir()) if path.name not in OWN]
    if foreign or not (target / BUNDLE / MANIFEST).is_file():
        what = f"holds {foreign[0]!r}, which is no page's" if foreign else "holds no page"
        raise InputError(f"{target} {what}: it is not replaced, name another folder")
    if not overwrite:
        raise InputError(f"{target} holds a page: name another folder, or give --overwrite")


def _check_bundle(bundle: Bundle, target: Path) -> None:
    if target.is_relative_to(bundle.path) or bundle.path.is_relative_to(target):
        raise InputError(
            f"the page {target} and the bundle {bundle.path} lie in each other: name another folder"
        )
    scan = bundle.manifest.scan
    if scan.get("function") == "none" and scan.get("calls"):
        raise InputError(
            f"the scans of {bundle.path} need our library, which no browser loads: export the "
            "model with --function sequential or parallel"
        )
    tokenizer_of(bundle)  # JavaScript trusts the file


def _fill(work: Path, bundle: Bundle, runtime: dict[str, bytes]) -> None:
    shutil.copytree(PAGE, work, dirs_exist_ok=True)
    (work / RUNTIME).mkdir()
    for name, content in runtime.items():
        (work / RUNTIME / name).write_bytes(content)
    (work / BUNDLE).mkdir()
    shutil.copyfile(bundle.path / MANIFEST, work / BUNDLE / MANIFEST)
    for name in FILES:
        (work / BUNDLE / name).write_bytes(bundle.read(name))
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # a server may be another user
    work.chmod(0o755)


def _move_into_place(work: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        os.replace(work, target)
    elif files.renameat2(work, target, files.EXCHANGE):
        shutil.rmtree(work)  # the old page
    else:
        old = work.with_suffix(".replaced")
        os.rename(target, old)
        os.rename(work, target)
        shutil.rmtree(old)
    files.sync(target.parent)
