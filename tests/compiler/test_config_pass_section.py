"""`passes:` as a section: changes of the default list, counts, and what is wrong with one."""

from pathlib import Path

import pytest

from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import CompilerError, CompilerErrors

MINIMAL = """\
frontend:
  checkpoint: weights
  type: huggingface
  shape:
    input_ids: [[64], [128]]
backend:
  type: llvm
"""
MY_PASS = '''
from dataclasses import dataclass
from typing import ClassVar
from compiler.contracts.pass_base import Pass, PassReport

@dataclass(frozen=True)
class MyPass(Pass):
    """Does nothing."""

    name: ClassVar = "my-pass"
    limit: int
    ratio: float = 0.5

    def run(self, program):
        return PassReport()
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my_pass.py").write_text(MY_PASS)

    def loader(section: str) -> BuildConfig:
        Path("model.yaml").write_text(f"{MINIMAL}passes:\n{section}")
        return load_config(Path("model.yaml"))

    return loader


def errors_of(load, section: str) -> list[tuple[str | None, str, str, str | None]]:
    with pytest.raises(CompilerError) as caught:
        load(section)
    found = caught.value
    errors = found.errors if isinstance(found, CompilerErrors) else (found,)
    return [(error.where, error.code, error.message, error.hint) for error in errors]


def test_a_section_is_read_with_its_places(load):
    passes = load(
        """\
  drop: [fold-constants]
  replace: {fold-mask: ./my_pass.py:MyPass: {limit: 2}}
  set: {insert-strided-slice: {position: last}}
  add:
    - store-weights: {dtype: float16}
    - pass: ./my_pass.py:MyPass
      options: {limit: 3}
      before: fuse-attention
  expect: {insert-strided-slice: 1, fuse-attention: layers}
""".replace(
            "{fold-mask: ./my_pass.py:MyPass: {limit: 2}}",
            "\n    fold-mask:\n      ./my_pass.py:MyPass: {limit: 2}",
        )
    ).passes
    assert passes.order is None
    assert [(one.name, one.place) for one in passes.drop] == [("fold-constants", "model.yaml:9:10")]
    ((replaced),) = passes.replace
    assert (replaced.name.name, replaced.spec.name) == ("fold-mask", "./my_pass.py:MyPass")
    assert replaced.spec.options == {"limit": 2}
    ((changed),) = passes.options
    assert (changed.name.name, dict(changed.spec.options)) == (
        "insert-strided-slice",
        {"position": "last"},
    )
    stored, mine = passes.add
    assert (stored.spec.name, stored.before, stored.after) == ("store-weights", None, None)
    assert mine.spec.options == {"limit": 3}
    assert mine.spec.source_sha256 is not None
    assert mine.before is not None
    assert (mine.before.name, mine.after) == ("fuse-attention", None)
    assert [(named.name, count.written) for named, count in passes.expect] == [
        ("insert-strided-slice", "1"),
        ("fuse-attention", "layers"),
    ]


def test_an_order_with_counts(load):
    config = load("  order: [fold-constants, fold-mask]\n  expect: {fold-mask: 1}\n")
    assert [spec.name for spec in config.pass_list] == ["fold-constants", "fold-mask"]
    assert [named.name for named, _ in config.passes.expect] == ["fold-mask"]


@pytest.mark.parametrize(
    ("section", "error"),
    [
        (
            "  dropp: [fold-mask]\n",
            (
                "model.yaml:9:3",
                "unknown-key",
                "passes: unknown key 'dropp'",
                "did you mean 'drop'?",
            ),
        ),
        (
            "  order: [fold-mask]\n  drop: [fold-mask]\n",
            (
                "model.yaml:10:9",
                "bad-value",
                "passes.drop: 'order' is the whole list, and leaves nothing to change",
                "leave out 'order' or 'drop'",
            ),
        ),
        (
            "  drop: fold-mask\n",
            (
                "model.yaml:9:9",
                "wrong-type",
                "passes.drop: expected a list, got the text 'fold-mask'",
                "write a list of names",
            ),
        ),
        (
            "  drop: [{fold-mask: 1}]\n",
            (
                "model.yaml:9:10",
                "wrong-type",
                "passes.drop[0]: expected a pass's name, got a section",
                "write its name",
            ),
        ),
        (
            "  set: [fold-mask]\n",
            (
                "model.yaml:9:8",
                "wrong-type",
                "passes.set: expected a section, got a list",
                "write `name: ...` lines",
            ),
        ),
        (
            "  set: {insert-strided-slice: {positon: last}}\n",
            (
                "model.yaml:9:32",
                "unknown-key",
                "pass 'insert-strided-slice' has no option 'positon'",
                "did you mean 'position'?",
            ),
        ),
        (
            "  add: fold-mask\n",
            (
                "model.yaml:9:8",
                "wrong-type",
                "passes.add: expected a list, got the text 'fold-mask'",
                "write `- name` lines",
            ),
        ),
        (
            "  add: [{pass: fold-mask, above: fold-constants}]\n",
            (
                "model.yaml:9:9",
                "unknown-key",
                "passes.add[0]: unknown key 'above'",
                "possible: pass, options, before, after, with one of the last two",
            ),
        ),
        (
            "  add: [{pass: fold-mask, before: fold-constants, after: fold-mask}]\n",
            (
                "model.yaml:9:9",
                "bad-value",
                "passes.add[0]: 'before' and 'after' together",
                "possible: pass, options, before, after, with one of the last two",
            ),
        ),
        (
            "  add: [{pass: 3}]\n",
            (
                "model.yaml:9:16",
                "wrong-type",
                "passes.add[0].pass: expected a pass's name",
                "write its name",
            ),
        ),
        (
            "  add: [./my_pass.py:MyPass]\n",
            (
                "model.yaml:9:9",
                "missing-key",
                "pass './my_pass.py:MyPass' needs the option 'limit'",
                "write `./my_pass.py:MyPass: {limit: ...}`",
            ),
        ),
        (
            "  expect: {fold-mask: many}\n",
            (
                "model.yaml:9:23",
                "bad-value",
                "passes.expect.fold-mask: 'many' is no count",
                "write a number, `layers`, or for example `2 * layers + 1`",
            ),
        ),
        (
            "  expect: {fold-mask: [1]}\n",
            (
                "model.yaml:9:23",
                "wrong-type",
                "passes.expect.fold-mask: expected a count, got a list",
                "write a number, `layers`, or for example `2 * layers + 1`",
            ),
        ),
    ],
)
def test_one_mistake(load, section: str, error: tuple[str, str, str, str]):
    assert errors_of(load, section) == [error]


@pytest.mark.parametrize(
    "section",
    [
        "  drop: [fold-maks]\n",
        "  set: {fold-maks: {}}\n",
        "  expect: {fold-maks: 1}\n",
        "  add: [{pass: fold-maks}]\n",
        "  add: [{pass: fold-mask, after: fold-maks}]\n",
        "  replace: {fold-maks: fold-mask}\n",
        "  replace: {fold-mask: fold-maks}\n",
    ],
)
def test_a_name_that_is_nobodys(load, section: str):
    ((_, code, message, hint),) = errors_of(load, section)
    assert (code, message) == ("unknown-name", "no pass is named 'fold-maks'")
    assert hint is not None
    assert hint.startswith("did you mean 'fold-mask'?")


def test_every_mistake_at_once(load):
    found = errors_of(load, "  drop: [a]\n  set: {b: {}}\n  add: [c]\n  expect: {d: 1}\n")
    assert [where for where, *_ in found] == [
        "model.yaml:9:10",
        "model.yaml:10:9",
        "model.yaml:11:9",
        "model.yaml:12:12",
    ]


@pytest.mark.parametrize(
    "section",
    [
        "  drop: [fold-constants]\n",
        "  replace: {fold-constants: fold-mask}\n",
        "  set: {insert-strided-slice: {position: last}}\n",
        "  add: [store-weights]\n",
        "  expect: {insert-strided-slice: 1}\n",
    ],
)
def test_every_change_is_in_the_digest(load, section: str):
    assert load(section).digest() != load("  {}\n").digest()


def test_a_pass_file_in_a_section_is_in_the_digest(load):
    section = "  add: [{pass: './my_pass.py:MyPass', options: {limit: 1}}]\n"
    before = load(section).digest()
    Path("my_pass.py").write_text(f"{MY_PASS}\n# another\n")
    assert load(section).digest() != before
