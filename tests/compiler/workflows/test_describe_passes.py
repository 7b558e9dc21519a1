"""What the registry and the classes say of passes, and what running one shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from compiler import registry
from compiler.contracts.errors import MachineLacks
from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.program import Phase, Program
from compiler.workflows.describe_passes import OptionSummary, explain_pass, list_passes
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice


@dataclass(frozen=True)
class Rounds(Pass):
    """Round numbers.

    More of it.
    """

    name: ClassVar = "round-numbers"
    phases: ClassVar[tuple[Phase, ...]] = ("decode",)
    requires: ClassVar = ("fold-mask",)
    contract: ClassVar = Contract.close(rtol=0.0, atol=0.5)
    digits: int
    include: tuple[str, ...] = ("*",)
    limit: float | None = None

    def run(self, program: Program) -> PassReport:
        return PassReport()


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered pass with an option that must be given."""
    monkeypatch.setattr(registry, "PASSES", {"round-numbers": f"{__name__}:Rounds"})
    monkeypatch.setattr(registry, "load_pass", lambda name, **_: Rounds)


def test_every_registered_pass_is_listed():
    listed = {one.name: one for one in list_passes()}
    assert sorted(listed) == list(registry.passes())
    assert all(one.problem is None and one.summary for one in listed.values())
    one = listed["insert-strided-slice"]
    assert one.phases == ("prefill",)
    assert one.options == (OptionSummary("position", "last | last_valid", "last_valid"),)
    assert one.contract == "changes(logits; rtol=1e-05, atol=1e-05)"
    assert one.owner == "graphlower"
    assert one.summary.startswith("lm_head(h[1, T, H]) -> lm_head(h[1, 1, H]): only")
    assert listed["fold-mask"].options == ()


@pytest.mark.usefixtures("one_more")
def test_an_option_without_a_default_is_listed_as_such():
    (one,) = list_passes()
    assert one.options == (
        OptionSummary("digits", "int", None),
        OptionSummary("include", "tuple[str, ...]", "('*',)"),
        OptionSummary("limit", "float | null", "None"),
    )
    assert (one.contract, one.summary) == ("close(rtol=0, atol=0.5)", "Round numbers.")


def test_a_pass_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch):
    def load(name: str, **_: object) -> type[Pass]:
        if name == "fold-mask":
            raise MachineLacks("pass 'fold-mask' needs the module 'cupy', which is not installed")
        return FuseSiluMul

    monkeypatch.setattr(registry, "load_pass", load)
    problems = {one.name: one.problem for one in list_passes() if one.problem is not None}
    assert problems == {
        "fold-mask": "pass 'fold-mask' needs the module 'cupy', which is not installed"
    }


def test_a_pass_is_explained_by_its_module_and_by_running_it():
    one = explain_pass(InsertStridedSlice(position="last"))
    assert one.about.startswith("Only the wanted token's hidden state reaches the head")
    assert one.source == "passes/insert_strided_slice.py" or one.source.startswith("passes.")
    assert (one.requires, one.after) == ((), ("fold-mask",))
    assert "store-weights" in one.before
    assert one.changes_signature
    assert one.example_before is not None
    assert one.example_after is not None
    assert one.example_before.count("MatMul(") == one.example_after.count("MatMul(") == 1
    assert "float32[1, 4, 16] logits" in one.example_before
    assert "float32[1, 1, 16] logits" in one.example_after
    assert "lm_head/Slice" in one.example_after


def test_what_names_a_pass_stands_after_it():
    one = explain_pass(FuseSiluMul())
    assert "fold-constants" in one.after
    assert one.contract == "close(rtol=1e-05, atol=1e-06)"


def test_a_pass_in_a_file_is_explained_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).parents[3] / "passes" / "fuse_silu_mul.py"
    (tmp_path / "mine.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    one = explain_pass(registry.load_pass("./mine.py:FuseSiluMul", base=tmp_path)())
    assert one.source == "mine.py"
    assert one.about.startswith("One node for the gated activation of the MLP.")
