"""`passes:`: the default list, entries with options, and what is wrong with one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from compiler import registry
from compiler.config import DEFAULT_PASSES, EXPORTED_PASSES, PassSpec, build_passes, load_config
from compiler.contracts.errors import CompilerError, CompilerErrors
from compiler.contracts.pass_base import Pass, PassReport

MINIMAL = """\
frontend:
  checkpoint: weights
  type: huggingface
  shape:
    input_ids: [[64], [128]]
backend:
  type: llvm
"""


@dataclass(frozen=True)
class Sample(Pass):
    """Options of several types, to be read from a YAML."""

    name: ClassVar[str] = "sample"
    size: int
    ratio: float = 0.5
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size is negative")

    def run(self, program: object) -> PassReport:
        return PassReport()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text -> BuildConfig of model.yaml; `sample` is a pass."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "PASSES", {**registry.PASSES, "sample": f"{__name__}:Sample"})

    def loader(text: str, *, overrides: tuple[str, ...] = (), target: str | None = None):
        Path("model.yaml").write_text(text)
        return load_config(Path("model.yaml"), overrides=overrides, target=target)

    return loader


def errors_of(load, text: str) -> list[tuple[str | None, str, str]]:
    """(where, code, message) of every error."""
    with pytest.raises(CompilerError) as caught:
        load(text)
    found = caught.value
    errors = found.errors if isinstance(found, CompilerErrors) else (found,)
    return [(error.where, error.code, error.message) for error in errors]


def test_default_passes(load):
    assert DEFAULT_PASSES == (
        "keep-qkv-bias",
        "fold-constants",
        "fold-mask",
        "plan-kv-cache",
        "insert-strided-slice",
    )
    names = [spec.name for spec in load(MINIMAL).pass_list]
    assert names == list(DEFAULT_PASSES)
    sliceless = load(MINIMAL, overrides=("frontend.model_kwargs.insert_slice=false",))
    assert [spec.name for spec in sliceless.pass_list] == list(DEFAULT_PASSES[:-1])
    assert sliceless.passes.order is None


def test_the_default_passes_of_an_exported_graph_are_those_and_more(load):
    names = [spec.name for spec in load(MINIMAL, overrides=("frontend.type=onnx",)).pass_list]
    assert names == list(EXPORTED_PASSES)
    assert [name for name in names if name in DEFAULT_PASSES] == list(DEFAULT_PASSES)


def test_passes_with_options(load):
    text = MINIMAL + "passes:\n  - sample: {size: 3, layers: [1, 2]}\n  - sample:\n      size: 4\n"
    config = load(text)
    assert config.passes.order == (
        PassSpec("sample", {"size": 3, "layers": (1, 2)}, "model.yaml:9:5"),
        PassSpec("sample", {"size": 4}, "model.yaml:10:5"),
    )
    assert build_passes(config.pass_list, folder=config.path.parent) == (
        Sample(3, 0.5, (1, 2)),
        Sample(4),
    )
    assert config.resolved()["passes"] == [
        {"name": "sample", "options": {"size": 3, "layers": [1, 2]}},
        {"name": "sample", "options": {"size": 4}},
    ]


def test_an_empty_list_of_passes_is_no_passes(load):
    config = load(MINIMAL + "passes: []\n")
    assert config.passes.order == ()
    assert build_passes(config.pass_list, folder=config.path.parent) == ()


def test_a_pass_of_a_file_is_part_of_the_digest(load, tmp_path):
    source = "from compiler.contracts.pass_base import *\n@dataclass(frozen=True)\nclass P(Pass):\n"
    source += "    name = 'p'\n    def run(self, program): return PassReport()\n"
    (tmp_path / "p.py").write_text(source)
    config = load(MINIMAL + "passes: [./p.py:P]\n")
    (spec,) = config.pass_list
    assert (spec.name, spec.source_sha256) == (
        "./p.py:P",
        hashlib.sha256(source.encode()).hexdigest(),
    )
    assert [
        type(built).__name__ for built in build_passes(config.pass_list, folder=config.path.parent)
    ] == ["P"]
    (tmp_path / "p.py").write_text(source + "# changed\n")
    assert load(MINIMAL + "passes: [./p.py:P]\n").digest() != config.digest()


@pytest.mark.parametrize(
    ("entry", "where", "code", "message"),
    [
        ("sampel", "8:10", "unknown-name", "no pass is named 'sampel'"),
        ("3", "8:10", "wrong-type", "passes[0]: expected a pass, got the number 3"),
        ("{a: 1, b: 2}", "8:10", "wrong-type", "passes[0]: expected a pass, got a section"),
        ("sample: 3", "8:18", "wrong-type", "the options of 'sample': expected a section, got the"),
        ("sample", "8:10", "missing-key", "pass 'sample' needs the option 'size'"),
        ("sample: {sise: 1, size: 1}", "8:19", "unknown-key", "pass 'sample' has no option 'sise'"),
        ("sample: {size: x}", "8:25", "wrong-type", "passes[0].sample.size: expected a whole numb"),
        ("sample: {size: true}", "8:25", "wrong-type", "passes[0].sample.size: expected a whole n"),
        (
            "sample: {size: 1, ratio: 1e-5}",
            "8:35",
            "wrong-type",
            "passes[0].sample.ratio: expected",
        ),
        ("sample: {size: 1, layers: [a]}", "8:37", "wrong-type", "passes[0].sample.layers[0]: exp"),
        ("sample: {size: -1}", "8:10", "bad-value", "pass 'sample' refuses its options: size is n"),
        ("./no.py:P", "8:10", "unknown-name", "pass './no.py:P': there is no file './no.py'"),
    ],
)
def test_a_wrong_entry_of_passes(load, entry, where, code, message):
    (found,) = errors_of(load, MINIMAL + f"passes: [{entry}]\n")
    assert found[:2] == (f"model.yaml:{where}", code)
    assert found[2].startswith(message)


def test_passes_must_be_a_list(load):
    (found,) = errors_of(load, MINIMAL + "passes: fold-mask\n")
    assert found == (
        "model.yaml:8:9",
        "wrong-type",
        "passes: expected a list, got the text 'fold-mask'",
    )


@pytest.mark.parametrize(
    ("value", "passes", "state"),
    [("false", "[insert-strided-slice]", "has"), ("true", "[fold-mask]", "lacks")],
)
def test_insert_slice_and_an_own_list_must_agree(load, value, passes, state):
    kwargs = f"  model_kwargs: {{insert_slice: {value}}}\nbackend:"
    text = MINIMAL.replace("backend:", kwargs) + f"passes: {passes}\n"
    (found,) = errors_of(load, text)
    assert found == (
        "model.yaml:6:32",
        "bad-value",
        f"frontend.model_kwargs.insert_slice is {value} and `passes` {state} insert-strided-slice",
    )
