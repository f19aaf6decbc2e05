"""Kills a writer at every one of its steps on the file system, and looks at what is there then.

Runs as `python kill_steps.py replace|fallback|engine FOLDER`, where FOLDER/old and FOLDER/new are
bundles; prints the number of steps. No time is involved: an audit hook counts system calls.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tfanet import files
from tfanet.runtime.bundle import leftovers, write
from tfanet.runtime.bundle.read import Bundle

STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "open", "ctypes.dlsym"}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Whether the work was killed in its step of that number, in a process of its own."""
    child = os.fork()
    if child == 0:
        left = step

        def hook(event: str, _: tuple[object, ...]) -> None:
            nonlocal left
            if event not in STEPS:
                return
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, "the work failed"
    return os.WIFSIGNALED(status)


def replace(root: Path, new: Path, target: Path) -> Callable[[], object]:
    def work() -> None:
        with write.new_bundle(target, overwrite=True) as folder:
            for path in new.iterdir():
                shutil.copyfile(path, folder / path.name)

    return work


def main() -> None:
    kind, root = sys.argv[1], Path(sys.argv[2])
    old, new, target = root / "old", root / "new", root / "place" / "bundle"
    target.parent.mkdir()
    known = {Bundle.open(old).digest: "old", Bundle.open(new).digest: "new"}
    if kind == "fallback":
        files.renameat2 = lambda *_: False
    work = replace(root, new, target) if kind != "engine" else None
    seen, step = set(), 0
    while True:
        step += 1
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(old, target)
        if work is None:
            from small_engines import add

            done = not killed_at(step, lambda: add(target, "tensorrt-rtx-fp16", b"another plan"))
            records = {e["name"]: e["files"] for e in Bundle.open(target).manifest.engines}
            assert set(records) == {"tensorrt-rtx-fp16", "tensorrt-rtx-bf16"}
            seen.add(str(records))
            if not done:  # the same again mends what there is to mend
                add(target, "tensorrt-rtx-fp16", b"another plan")
        else:
            done = not killed_at(step, work)
            if kind == "fallback":
                write.check_target(target, overwrite=True)
            seen.add(known[Bundle.open(target).digest])
            if not done:
                work()
                assert known[Bundle.open(target).digest] == "new"
        assert list(target.parent.iterdir()) == [target], sorted(target.parent.iterdir())
        left = leftovers.leftovers(target)
        assert left == {"killed": [], "foreign": []}, left
        if done:
            break
    assert len(seen) == 2, seen
    print(step - 1)


if __name__ == "__main__":
    main()
