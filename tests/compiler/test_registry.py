"""The registry: names without imports, classes by name, and what it says when there is none."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from compiler import registry
from compiler.contracts.errors import CheckpointError, ConfigError, MachineLacks
from compiler.contracts.pass_base import Pass

PASS_FILE = """
from dataclasses import dataclass
from typing import ClassVar

from compiler.contracts.pass_base import Pass, PassReport


@dataclass(frozen=True)
class Mine(Pass):
    name: ClassVar[str] = "mine"
    depth: int = 1

    def run(self, program):
        return PassReport()


class NotAPass:
    pass
"""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch):
    """Installs entry points: (group, name, value, distribution)."""

    def install(*points: tuple[str, str, str, str]) -> None:
        def entry_points(*, group: str) -> list[SimpleNamespace]:
            return [
                SimpleNamespace(name=name, value=value, dist=SimpleNamespace(name=owner))
                for points_group, name, value, owner in points
                if points_group == group
            ]

        monkeypatch.setattr(metadata, "entry_points", entry_points)

    return install


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An importable module that holds a pass."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registry_test_plugin.py").write_text(PASS_FILE)
    yield "registry_test_plugin"
    sys.modules.pop("registry_test_plugin", None)


def test_the_built_in_names():
    assert registry.passes() == (
        "annotate-int8-qdq",
        "cast-dtype",
        "drop-nan-guard",
        "eliminate-dead",
        "fold-batch",
        "fold-constants",
        "fold-mask",
        "fold-shapes",
        "fuse-attention",
        "fuse-gate-up",
        "fuse-qkv",
        "fuse-rms-norm",
        "fuse-rotary",
        "fuse-silu-mul",
        "group-queries",
        "insert-strided-slice",
        "keep-qkv-bias",
        "merge-equal",
        "pack-weights",
        "pad-vocabulary",
        "place-scale",
        "plan-kv-cache",
        "restore-transpose",
        "round-activations",
        "shard-tensor-parallel",
        "state-reshapes",
        "store-kv-cache",
        "store-weights",
        "widen-angles",
    )
    assert registry.targets() == ("onnxruntime", "torch", "tvm_llvm", "tvm_vacc")
    assert registry.declared_targets() == ("onnxruntime", "torch", "tvm_llvm", "tvm_vacc")
    assert registry.models() == ("llama", "qwen2", "qwen3")


def test_listing_imports_no_plugin():
    code = (
        "import sys; from compiler import registry\n"
        "registry.passes(), registry.targets(), registry.models()\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('passes', 'targets', 'models', 'torch', 'onnx', 'tvm', 'numpy')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_entry_points_add_names(plugins, module):
    plugins(("graphlower.passes", "mine", f"{module}:Mine", "acme"))
    assert "mine" in registry.passes()
    kind = registry.load_pass("mine")
    assert (kind.__name__, issubclass(kind, Pass)) == ("Mine", True)


def test_a_duplicate_name_names_both_owners(plugins):
    plugins(("graphlower.passes", "fold-mask", "acme:FoldMask", "acme"))
    with pytest.raises(ConfigError) as caught:
        registry.passes()
    assert caught.value.message == (
        "two packages bring a pass named 'fold-mask': graphlower and acme"
    )
    assert caught.value.code == "duplicate-name"


def test_the_same_entry_point_seen_twice_is_no_duplicate(plugins):
    point = ("graphlower.models", "mine", "acme:Mine", "acme")
    plugins(point, point)
    assert registry.models() == ("llama", "mine", "qwen2", "qwen3")


def test_an_alias_is_a_name_too(plugins):
    plugins(("graphlower.targets", "llvm", "acme:Target", "acme"))
    with pytest.raises(ConfigError, match="graphlower and acme \\(it is an alias of tvm_llvm\\)"):
        registry.targets()


def test_targets_resolve_through_aliases():
    assert registry.resolve_target("llvm") == "tvm_llvm"
    assert registry.resolve_target("vacc") == "tvm_vacc"
    assert registry.resolve_target("torch") == "torch"


def test_a_declared_target_that_nothing_brings_is_not_installed(plugins):
    plugins()
    assert registry.targets() == ("onnxruntime", "torch", "tvm_llvm")
    with pytest.raises(ConfigError) as caught:
        registry.load_target("vacc", where="m.yaml:1:2")
    error = caught.value
    assert (error.code, error.where) == ("not-installed", "m.yaml:1:2")
    assert error.message == "target 'vacc' is not installed"
    assert error.hint == (
        "installed: onnxruntime, torch, tvm_llvm; a package brings 'tvm_vacc' by an entry point "
        "in the group 'graphlower.targets'"
    )


def test_a_plugin_may_fill_a_declared_target(plugins, module):
    plugins(("graphlower.targets", "tvm_vacc", f"{module}:Mine", "acme"))
    assert registry.targets() == ("onnxruntime", "torch", "tvm_llvm", "tvm_vacc")
    with pytest.raises(ConfigError, match="'Mine' is not a Target"):
        registry.load_target("vacc")


@pytest.mark.parametrize(
    ("load", "name", "message", "hint"),
    [
        (registry.load_pass, "fold_maks", "no pass is named 'fold_maks'", "mean 'fold-mask'?"),
        (registry.load_pass, "zzz", "no pass is named 'zzz'", "fold-constants, fold-mask"),
        (registry.load_target, "lvm", "no target is named 'lvm'", "did you mean 'llvm'?"),
    ],
)
def test_an_unknown_name(load, name, message, hint):
    with pytest.raises(ConfigError) as caught:
        load(name, where="here")
    assert (caught.value.message, caught.value.where) == (message, "here")
    assert hint in str(caught.value.hint)


def test_an_unknown_model_type_lists_those_that_are_supported():
    with pytest.raises(CheckpointError) as caught:
        registry.load_family("mamba", where="config.json")
    assert caught.value.message == "model_type 'mamba' is not supported"
    assert caught.value.hint == "supported: llama, qwen2, qwen3"
    assert caught.value.code == "unsupported-model-type"


def test_a_missing_module_is_what_the_machine_lacks(plugins):
    plugins(("graphlower.passes", "mine", "no_such_module_here:Mine", "acme"))
    with pytest.raises(MachineLacks) as caught:
        registry.load_pass("mine")
    assert caught.value.message == (
        "pass 'mine' of acme (no_such_module_here:Mine) needs the module 'no_such_module_here', "
        "which is not installed"
    )


def test_a_missing_class_suggests_the_nearest(plugins, module):
    plugins(("graphlower.passes", "mine", f"{module}:Mien", "acme"))
    with pytest.raises(ConfigError, match="there is no class 'Mien'") as caught:
        registry.load_pass("mine")
    assert caught.value.hint == "did you mean 'Mine'?"


def test_a_pass_from_a_file_beside_the_yaml(tmp_path):
    (tmp_path / "mine.py").write_text(PASS_FILE)
    kind = registry.load_pass("./mine.py:Mine", base=tmp_path)
    assert kind(depth=3).depth == 3  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    assert registry.load_pass(f"{tmp_path}/mine.py:Mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("./no.py:Mine", PASS_FILE, "pass './no.py:Mine': there is no file './no.py'"),
        ("mine.py:Nine", PASS_FILE, "pass 'mine.py:Nine': there is no class 'Nine'"),
        ("mine.py:NotAPass", PASS_FILE, "pass 'mine.py:NotAPass': 'NotAPass' is not a Pass"),
        ("mine.py:Pass", PASS_FILE, "pass 'mine.py:Pass': 'Pass' is not a Pass"),
        ("mine.py:PASS", "PASS = 3", "pass 'mine.py:PASS': 'PASS' is not a Pass"),
        ("mine.py:M", "def (", "pass 'mine.py:M' cannot be loaded: SyntaxError: invalid syntax"),
        ("mine.py:M", "x = y", "pass 'mine.py:M' cannot be loaded: NameError: name 'y' is not"),
    ],
)
def test_a_file_without_that_pass(tmp_path, name, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        registry.load_pass(name, base=tmp_path, where="m.yaml:3:5")
    assert caught.value.message.startswith(message)
    assert caught.value.where == "m.yaml:3:5"


def test_a_file_that_needs_a_module_that_is_not_installed(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_module_here")
    with pytest.raises(MachineLacks, match="needs the module 'no_such_module_here'"):
        registry.load_pass("mine.py:Mine", base=tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('name: ClassVar[str] = "mine"', "pass"), ("@dataclass(frozen=True)\n", "")],
)
def test_a_pass_that_is_no_dataclass_with_a_name(tmp_path, old, new):
    (tmp_path / "mine.py").write_text(PASS_FILE.replace(old, new))
    with pytest.raises(ConfigError, match="is not a frozen dataclass with a `name`"):
        registry.load_pass("mine.py:Mine", base=tmp_path)
