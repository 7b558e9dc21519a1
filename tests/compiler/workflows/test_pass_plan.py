"""The passes of a build: the list, the target's, and what the YAML changes of both."""

from pathlib import Path

import pytest

from compiler.config import load_config, pass_list
from compiler.contracts.errors import CompilerError, ConfigError, PassError
from compiler.contracts.target_base import PassChoice
from compiler.pass_order import PlannedPass
from compiler.workflows.pass_plan import planned_passes

# A default list short enough to count in.
DEFAULT = [
    "keep-qkv-bias",
    "fold-constants",
    "fold-mask",
    "plan-kv-cache",
    "insert-strided-slice",
]
CHOICES = (PassChoice("fuse-attention"), PassChoice("store-weights", {"dtype": "bfloat16"}))
TARGETS = [choice.name for choice in CHOICES]
MY_PASS = '''
from dataclasses import dataclass
from typing import ClassVar
from compiler.contracts.pass_base import Pass, PassReport

@dataclass(frozen=True)
class MyPass(Pass):
    """Does nothing."""

    name: ClassVar = "my-pass"
    after: ClassVar = ("fuse-attention",)

    def run(self, program):
        return PassReport()
'''


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The text under `passes:` -> planned passes."""
    monkeypatch.setattr(pass_list, "DEFAULT_PASSES", tuple(DEFAULT))
    monkeypatch.chdir(tmp_path)
    Path("my_pass.py").write_text(MY_PASS)

    def planner(section: str) -> tuple[PlannedPass, ...]:
        Path("model.yaml").write_text(
            "frontend: {checkpoint: c, type: huggingface, shape: {input_ids: [[16], [32]]}}\n"
            f"backend: {{type: llvm}}\npasses:\n{section}"
        )
        return planned_passes(load_config(Path("model.yaml")), CHOICES, target="tvm_llvm")

    return planner


def names(passes: tuple[PlannedPass, ...]) -> list[str]:
    return [one.rewrite.name for one in passes]


def test_the_targets_passes_follow_the_list(plan):
    passes = plan("  {}\n")
    assert names(passes) == [*DEFAULT, *TARGETS]
    assert [one.place for one in passes[-2:]] == ["target tvm_llvm"] * 2
    assert passes[-1].rewrite.dtype == "bfloat16"


def test_a_pass_that_the_list_holds_is_not_added_again(plan):
    passes = plan("  order: [fold-mask, plan-kv-cache, fuse-attention]\n")
    assert names(passes) == ["fold-mask", "plan-kv-cache", "fuse-attention", "store-weights"]
    assert passes[2].place == "model.yaml:4:37"


def test_drop_takes_from_the_list_and_from_the_target(plan):
    passes = plan("  drop: [fold-constants, fuse-attention]\n")
    assert names(passes) == [
        n for n in [*DEFAULT, *TARGETS] if n not in ("fold-constants", "fuse-attention")
    ]


def test_set_keeps_the_other_options(plan):
    passes = plan(
        "  set: {store-weights: {dtype: float16}, insert-strided-slice: {position: last}}\n"
    )
    assert passes[-1].rewrite.dtype == "float16"
    assert passes[4].rewrite.position == "last"


def test_a_replacement_stands_for_what_it_replaces(plan):
    passes = plan("  replace: {fold-constants: './my_pass.py:MyPass'}\n  drop: [fuse-attention]\n")
    assert names(passes)[1] == "my-pass"
    assert passes[1].stands_for == "fold-constants"


def test_what_says_nothing_of_its_place_joins_before_the_targets_passes(plan):
    passes = plan("  add: [fuse-silu-mul, fuse-rms-norm]\n")
    assert names(passes) == [*DEFAULT, "fuse-silu-mul", "fuse-rms-norm", *TARGETS]


def test_an_added_pass_goes_where_it_declares_to_stand(plan):
    passes = plan("  add: ['./my_pass.py:MyPass']\n")
    assert names(passes) == [*DEFAULT, "fuse-attention", "my-pass", "store-weights"]


@pytest.mark.parametrize(
    ("place", "index"),
    [("before: fold-mask", 2), ("after: fold-mask", 3), ("after: store-weights", 7)],
)
def test_an_added_pass_with_a_place(plan, place: str, index: int):
    passes = plan(f"  add: [{{pass: fuse-silu-mul, {place}}}]\n")
    assert names(passes)[index] == "fuse-silu-mul"


def test_a_place_that_its_declarations_forbid(plan):
    with pytest.raises(PassError, match="'my-pass' must stand after 'fuse-attention'"):
        plan("  add: [{pass: './my_pass.py:MyPass', before: fold-mask}]\n")


def test_counts_go_to_their_passes(plan):
    passes = plan("  expect: {insert-strided-slice: 1, store-weights: 7 * layers + 2}\n")
    counts = {one.rewrite.name: one.expected for one in passes if one.expected is not None}
    assert {name: count.count(24) for name, count in counts.items()} == {
        "insert-strided-slice": 1,
        "store-weights": 170,
    }


def test_dropping_what_others_need(plan):
    with pytest.raises(CompilerError) as caught:
        plan("  drop: [fold-mask]\n")
    assert "pass 'plan-kv-cache' needs 'fold-mask' before it" in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        "  drop: [fuse-silu-mul]\n",
        "  set: {fuse-silu-mul: {}}\n",
        "  replace: {fuse-silu-mul: fold-mask}\n",
        "  expect: {fuse-silu-mul: 1}\n",
        "  add: [{pass: fold-mask, before: fuse-silu-mul}]\n",
    ],
)
def test_a_pass_that_the_list_does_not_hold(plan, section: str):
    with pytest.raises(ConfigError) as caught:
        plan(section)
    assert caught.value.message == "pass 'fuse-silu-mul' is not in the list"
    assert caught.value.where is not None
    assert caught.value.where.startswith("model.yaml:4:")
    assert caught.value.hint == f"the list is {', '.join([*DEFAULT, *TARGETS])}"
