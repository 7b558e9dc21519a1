"""The C linker: the host's, ziglang's, or a clear word that there is none."""

import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from compiler.contracts.errors import MachineLacks
from compiler.relax import link
from compiler.relax.link import find_linker, link_shared


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Programs and packages that the machine has; empty until a test adds some."""
    found: set[str] = set()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in found else None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: ModuleSpec(name, None) if name in found else None
    )
    return found


@pytest.mark.parametrize(
    ("present", "linker"),
    [
        ({"cc", "gcc", "ziglang"}, ("/bin/cc",)),
        ({"gcc", "clang"}, ("/bin/gcc",)),
        ({"clang"}, ("/bin/clang",)),
        ({"ziglang"}, (sys.executable, "-m", "ziglang", "cc")),
    ],
)
def test_the_first_that_is_there(installed: set[str], present: set[str], linker: tuple[str, ...]):
    installed.update(present)
    assert find_linker() == linker


def test_the_user_s_own_comes_first(installed: set[str], monkeypatch: pytest.MonkeyPatch):
    installed.update({"cc", "icx"})
    monkeypatch.setenv("CC", "icx")
    assert find_linker() == ("/bin/icx",)
    monkeypatch.setenv("CC", "absent")
    assert find_linker() == ("/bin/cc",)


def test_without_any_it_says_what_to_install(installed: set[str], tmp_path: Path):
    assert installed == set()
    assert find_linker() is None
    with pytest.raises(MachineLacks) as caught:
        link_shared(str(tmp_path / "x.so"), [str(tmp_path / "x.o")])
    assert caught.value.message == "there is no C compiler to link the library with"
    assert caught.value.hint == (
        "install a C compiler (Debian: apt-get install gcc), or: pip install ziglang"
    )
    assert caught.value.exit_code == 3


def test_a_linker_that_fails_is_quoted(tmp_path: Path):
    if find_linker() is None:
        pytest.skip("this machine has no C compiler")
    (tmp_path / "broken.o").write_text("no object file")
    with pytest.raises(MachineLacks, match=r"the linker \S+ failed: .*broken\.o"):
        link_shared(str(tmp_path / "out.so"), [str(tmp_path / "broken.o")])
    assert not (tmp_path / "out.so").exists()


def test_objects_are_named_relative_to_their_folder(
    installed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed.add("cc")
    ran: list[tuple[list[str], Path]] = []

    def run(command: list[str], *, cwd: Path, **_options: object) -> subprocess.CompletedProcess:
        ran.append((command, cwd))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(link.subprocess, "run", run)
    objects = [str(tmp_path / "one.o"), str(tmp_path / "two.o")]
    link_shared("/somewhere/module.so", objects, options=["-ignored"])
    ((command, folder),) = ran
    assert folder == tmp_path
    assert command == [
        "/bin/cc",
        "-shared",
        "-fPIC",
        "-Wl,--build-id=none",
        "-o",
        "/somewhere/module.so",
        "one.o",
        "two.o",
    ]


def test_it_tells_tvm_what_it_takes():
    assert vars(link_shared) == {"object_format": "o", "output_format": "so"}
