"""The target is there where its entry point is; drivers come by entry points of their own."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from compiler import registry
from compiler.contracts.errors import CompilerError, MachineLacks
from compiler.relax.link import find_linker
from targets.vacc.drivers import driver_names, load_driver
from targets.vacc.emulator import Emulator
from targets.vacc.target import VaccTarget

DRIVERS = "[graphlower.vacc_drivers]\nmine = my_vacc_driver:Mine\nbroken = no_such_module:Driver\n"
DRIVER = """
class Mine:
    name = "mine"

    def __init__(self, options=""):
        self.options = options

    def probe(self):
        return ("the card is not plugged in",)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "my_drivers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-drivers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(DRIVERS)
    (tmp_path / "my_vacc_driver.py").write_text(DRIVER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_installed_plugin_is_a_target_under_both_names() -> None:
    assert "tvm_vacc" in registry.targets()
    assert registry.load_target("vacc") is VaccTarget
    assert registry.load_target("tvm_vacc") is VaccTarget


@pytest.mark.usefixtures("no_plugins")
def test_without_its_entry_point_the_error_is_clear_and_others_work() -> None:
    with pytest.raises(CompilerError, match="target 'vacc' is not installed") as caught:
        registry.load_target("vacc")
    assert str(caught.value.hint).startswith("installed: onnxruntime, torch, tvm_llvm; ")
    for name in ("tvm_llvm", "torch", "onnxruntime"):
        assert registry.load_target(name)().probe().can_run


@pytest.mark.usefixtures("installed")
def test_probing_says_which_drivers_are_there_and_what_they_lack() -> None:
    assert driver_names() == ("broken", "emulator", "mine")
    probe = VaccTarget().probe()
    assert probe.can_build
    assert probe.can_run
    assert (probe.facts["drivers"], probe.facts["profiles"]) == ("emulator", "assumed")
    assert probe.facts["tvm"] == metadata.version("apache-tvm")
    assert probe.facts["linker"] == " ".join(find_linker() or ("nothing was found",))
    assert probe.missing == (
        "driver 'broken': vacc driver 'broken' cannot be loaded: No module named 'no_such_module'",
        "driver 'mine': the card is not plugged in",
    )


@pytest.mark.usefixtures("installed")
def test_a_driver_is_named_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_driver(), Emulator)
    monkeypatch.setenv("GRAPHLOWER_VACC_DRIVER", "mine:card=3")
    found = load_driver()
    assert (found.name, getattr(found, "options", None)) == ("mine", "card=3")
    assert isinstance(load_driver("emulator"), Emulator)
    with pytest.raises(MachineLacks, match="'broken' cannot be loaded"):
        load_driver("broken")
    with pytest.raises(CompilerError, match="there is no vacc driver 'other'") as caught:
        load_driver("other")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("installed: broken, emulator, mine;")
    sys.modules.pop("my_vacc_driver", None)
