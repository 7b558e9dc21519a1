"""The order of passes as a graph: violations, cycles, and places that are found."""

from dataclasses import dataclass

import pytest

from compiler.contracts.errors import CompilerErrors, PassError
from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program
from compiler.pass_order import PlannedPass, arrange, check_order


def planned(
    name: str,
    *,
    requires: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    is_placed: bool = True,
    stands_for: str = "",
) -> PlannedPass:
    @dataclass(frozen=True)
    class StandIn(Pass):
        def run(self, program: Program) -> PassReport:
            del program
            return PassReport()

    StandIn.name, StandIn.requires, StandIn.after = name, requires, after
    return PlannedPass(StandIn(), f"model.yaml: {name}", is_placed=is_placed, stands_for=stands_for)


def names(*passes: PlannedPass) -> list[str]:
    return [one.rewrite.name for one in arrange(passes)]


def test_declarations_that_contradict_each_other_are_shown_as_a_cycle():
    with pytest.raises(PassError) as caught:
        check_order(
            [planned("a", after=("c",)), planned("b", requires=("a",)), planned("c", after=("b",))]
        )
    error = caught.value
    assert error.code == "pass-order"
    assert error.message.startswith("no order satisfies these passes: ")
    for step in (
        "'a' before 'b' ('b' requires it)",
        "'b' before 'c' ('c' must stand after it)",
        "'c' before 'a' ('a' must stand after it)",
    ):
        assert step in error.message


def test_a_pass_that_follows_itself():
    with pytest.raises(PassError, match="'a' before 'a'"):
        check_order([planned("a", after=("a",))])


def test_a_pass_may_run_twice_around_another():
    check_order([planned("fold"), planned("fuse", after=("fold",)), planned("fold")])


def test_a_replacement_counts_as_what_it_replaces():
    mine = planned("my-mask", stands_for="fold-mask")
    check_order([mine, planned("plan-cache", requires=("fold-mask",))])
    with pytest.raises(PassError, match="pass 'slice' must stand after 'fold-mask'"):
        check_order([planned("slice", after=("fold-mask",)), mine])


@pytest.mark.parametrize(
    ("passes", "order"),
    [
        ([planned("a"), planned("b"), planned("x", is_placed=False)], ["a", "b", "x"]),
        (
            [planned("a"), planned("x", is_placed=False), planned("b")],
            ["a", "x", "b"],
        ),
        (
            [planned("x", after=("b",), is_placed=False), planned("a"), planned("b"), planned("c")],
            ["a", "b", "x", "c"],
        ),
        (
            [planned("a"), planned("b", after=("x",)), planned("x", is_placed=False)],
            ["a", "x", "b"],
        ),
        (
            [
                planned("x", requires=("y",), is_placed=False),
                planned("y", after=("a",), is_placed=False),
                planned("a"),
                planned("b"),
            ],
            ["a", "y", "x", "b"],
        ),
    ],
)
def test_a_pass_without_a_place_finds_one(passes: list[PlannedPass], order: list[str]):
    assert names(*passes) == order
    check_order(arrange(passes))


def test_given_places_are_kept_and_refused_by_the_check():
    passes = [planned("b", after=("a",)), planned("a"), planned("x", is_placed=False)]
    assert names(*passes) == ["b", "a", "x"]
    with pytest.raises((PassError, CompilerErrors), match="must stand after 'a'"):
        check_order(arrange(passes))


def test_a_place_that_the_list_forbids():
    with pytest.raises(PassError) as caught:
        arrange(
            [
                planned("a", after=("x",)),
                planned("b"),
                planned("x", after=("b",), is_placed=False),
            ]
        )
    assert "'a' before 'b' (stands above it in the list)" in caught.value.message
    assert "'b' before 'x' ('x' must stand after it)" in caught.value.message
    assert "'x' before 'a' ('a' must stand after it)" in caught.value.message
