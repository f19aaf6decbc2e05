"""What the library loads and from where, how it is built, and that it reaches for no network."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built import need_native
from c_library import ort_library

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
LIBRARIES = {path.name: path for path in sorted(ROOT.glob("*/lib/libtfanet_*.so"))}
LIVES = 12  # seconds, in which ONNX Runtime has reported when it does


@pytest.fixture(scope="module")
def program(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """print_loading.c, which is not linked with the library."""
    made = tmp_path_factory.mktemp("program") / "print_loading"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{sdk / 'include'}"]
    source = HERE / "print_loading.c"
    subprocess.run(["cc", *flags, source, "-o", made, "-ldl"], check=True)
    return made


@pytest.fixture
def show(program: Path, scan_bundle: Path) -> Callable[..., list[str]]:
    """Status, error or operator library, and ORT_DISABLE_TELEMETRY."""

    def run(
        library: Path | str, *, onnxruntime: str = str(ort_library()), start: Path | None = None,
        command: Path = program, **variables: str,
    ) -> list[str]:  # fmt: skip
        known = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        done = subprocess.run(
            [command, library, "/", scan_bundle, onnxruntime],
            cwd=start,
            env=known | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_paths_are_absolute_from_the_start(show: Callable, library: Path, tmp_path: Path) -> None:
    """Loaded by a relative name, in a program that goes elsewhere before it opens a bundle."""
    shutil.copy(library, tmp_path)
    shutil.copy(LIBRARIES["libtfanet_ort.so"], tmp_path)
    status, found, _ = show("./libtfanet_runtime.so", start=tmp_path)
    assert (status, found) == ("OK", str(tmp_path / "libtfanet_ort.so"))


def test_files_that_are_named_are_taken_from_where_they_lie(
    open_runtime: Callable, scan_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a slash would be looked for on the system."""
    monkeypatch.chdir(LIBRARIES["libtfanet_ort.so"].parent)
    info = open_runtime(scan_bundle, op_library="libtfanet_ort.so").info()
    assert os.fsdecode(info.op_library) == str(LIBRARIES["libtfanet_ort.so"])


def test_other_folders_are_those_of_a_checkout_alone(
    show: Callable, library: Path, tmp_path: Path
) -> None:
    for folder, source in (
        ("runtime/lib", library),
        ("plugins/lib", LIBRARIES["libtfanet_ort.so"]),
        ("runtime/other", library),
    ):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(source, tmp_path / folder)
    ours = tmp_path / "runtime/lib/libtfanet_runtime.so"
    assert "without a function body" in show(ours)[1]
    (tmp_path / "runtime/__init__.py").touch()
    assert "without a function body" in show(ours)[1]
    (tmp_path / "plugins/__init__.py").touch()
    assert show(ours)[1] == str(tmp_path / "plugins/lib/libtfanet_ort.so")
    assert "without a function body" in show(tmp_path / "runtime/other/libtfanet_runtime.so")[1]


def test_programs_with_more_rights_ignore_the_environment(
    show: Callable, program: Path, library: Path, tmp_path: Path
) -> None:
    missing = "/nowhere/lib.so"
    for name, setting in (("TFANET_ONNXRUNTIME", "-"), ("TFANET_OP_LIBRARY", str(ort_library()))):
        assert missing in show(library, onnxruntime=setting, **{name: missing})[1]
    if os.geteuid() != 0 or os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("only root can make a program that runs as another group")
    privileged = Path(shutil.copy(program, tmp_path))
    os.chown(privileged, 0, 65534)
    privileged.chmod(0o755 | stat.S_ISGID)
    assert missing not in show(
        library, onnxruntime="-", command=privileged, TFANET_ONNXRUNTIME=missing
    )[1]  # fmt: skip
    assert show(library, command=privileged, TFANET_OP_LIBRARY=missing)[0] == "OK"


@pytest.mark.parametrize("choice", ["", "0", "1"])
def test_telemetry_is_off_unless_the_user_chose(
    choice: str, show: Callable, library: Path, tmp_path: Path
) -> None:
    chosen = {"ORT_DISABLE_TELEMETRY": choice} if choice else {}
    assert show(library, HOME=str(tmp_path), **chosen)[2] == (choice or "1")


def test_no_network_in_a_program_that_lives(
    program: Path, library: Path, shared_bundle: Path, tmp_path: Path
) -> None:
    """It asks for no socket and no address, and leaves nothing in the user's folders."""
    shim, log, home = tmp_path / "no_network.so", tmp_path / "log", tmp_path / "home"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, HERE / "no_network.c", "-o", shim], check=True)
    home.mkdir()
    hidden = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    known = {name: text for name, text in os.environ.items() if name not in hidden}
    variables = {"HOME": str(home), "LD_PRELOAD": str(shim), "NO_NETWORK_LOG": str(log)}
    alive = subprocess.Popen(
        [program, library, "/", shared_bundle, str(ort_library())],
        env=known | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert alive.stdout and alive.stdout.readline() == "OK\n"
    time.sleep(LIVES)
    alive.communicate("")
    assert alive.returncode == 0
    assert not log.exists(), log.read_text()
    assert list(home.rglob("*")) == []


def test_threads_stay_on_the_cores_of_the_process(
    program: Path, library: Path, shared_bundle: Path
) -> None:
    """With one core allowed, ONNX Runtime's own choice ties a thread to another."""
    for core in sorted(os.sched_getaffinity(0))[:2]:
        alive = subprocess.Popen(
            [program, library, "/", shared_bundle, str(ort_library())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
        )
        assert alive.stdout and alive.stdout.readline() == "OK\n"
        tasks = [int(path.name) for path in Path(f"/proc/{alive.pid}/task").iterdir()]
        places = [os.sched_getaffinity(task) for task in tasks]
        alive.communicate("")
        assert alive.returncode == 0
        assert all(place == {core} for place in places)
        assert len(places) == 1  # which runs alone


def test_number_of_threads(open_runtime: Callable, shared_bundle: Path) -> None:
    open_runtime(shared_bundle, threads=16)
    for number in (1025, 100_000, 2**31 - 1):
        with pytest.raises(Exception, match=f"threads is {number}, the limit is 1,024") as caught:
            open_runtime(shared_bundle, threads=number)
        assert caught.value.status == "INVALID_ARGUMENT"


class Elf:
    """Segments and dynamic entries of a 64-bit file."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert data[:5] == b"\x7fELF\x02"
        offset, size, count = (
            *struct.unpack_from("<Q", data, 32),
            *struct.unpack_from("<HH", data, 54),
        )
        self.segments: dict[int, int] = {}  # flags by type
        self.dynamic: dict[int, int] = {}
        for number in range(count):
            kind, flags, begin, _, _, length = struct.unpack_from(
                "<IIQQQQ", data, offset + number * size
            )
            self.segments[kind] = flags
            if kind == 2:  # PT_DYNAMIC
                entries = struct.iter_unpack("<QQ", data[begin : begin + length])
                self.dynamic |= dict(entries)


@pytest.mark.parametrize("name", LIBRARIES)
def test_hardening(name: str) -> None:
    """What CMakeLists.txt says of all that is built, read from the file itself."""
    elf = Elf(LIBRARIES[name])
    relro, stack = 0x6474E552, 0x6474E551
    flags, flags_1, runpath, rpath, textrel = 30, 0x6FFFFFFB, 29, 15, 22
    assert relro in elf.segments
    assert elf.segments[stack] & 1 == 0  # not executable
    assert elf.dynamic.get(flags, 0) & 8 or elf.dynamic.get(flags_1, 0) & 1  # bound at the start
    assert not {runpath, rpath, textrel} & elf.dynamic.keys()
    command = ["nm", "-D", "--undefined-only", LIBRARIES[name]]
    symbols = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert re.search(r"\b__stack_chk_fail\b", symbols)


def test_every_file_is_compiled_with_guards() -> None:
    files = list(need_native().rglob("flags.make"))
    if not files:
        pytest.skip("build/native is not of make")
    for path in files:
        for flags in re.findall(r"^C(?:XX)?_FLAGS = .*$", path.read_text(), flags=re.M):
            assert "-fstack-protector-strong" in flags, path
            assert "-D_FORTIFY_SOURCE=2" in flags, path
