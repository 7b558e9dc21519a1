"""How often a pass must fire, and what is said where it does not."""

import pytest

from compiler.contracts.pass_base import PassReport, Skip
from compiler.expectations import read_expectation


@pytest.mark.parametrize(
    ("written", "count"),
    [(0, 0), (1, 1), ("layers", 24), ("2*layers", 48), ("2 * layers + 1", 49), ("layers+3", 27)],
)
def test_counts(written: int | str, count: int):
    assert read_expectation(written).count(24) == count


@pytest.mark.parametrize("written", [-1, "", "layer", "1.5", "layers * 2", "layers - 1", "24 "])
def test_what_is_no_count(written: int | str):
    with pytest.raises(ValueError, match=r"negative|no count"):
        read_expectation(written)


def report(*layers: int, skips: tuple[Skip, ...] = ()) -> PassReport:
    return PassReport(tuple(f"model.layers.{i}.mlp/Fused" for i in layers), skips)


def test_a_count_that_is_met_says_nothing():
    assert read_expectation("layers").unmet(report(0, 1, 2), 3) is None
    assert read_expectation(1).unmet(PassReport(("lm_head/Slice",)), 3) is None


def test_an_unmatched_layer_is_shown_with_each_reason():
    skips = (
        Skip("model.layers.1.mlp/Sigmoid", "it does not multiply its own input"),
        Skip("model.layers.1.mlp/Mul", "it is read twice"),
        Skip("model.norm/Mul", "it is no layer's"),
    )
    assert read_expectation("layers").unmet(report(0, 2, skips=skips), 3) == (
        "rewrote 2 places, expected 3 (`layers`); layer 1 has 0 of 1 (model.layers.1.mlp/Sigmoid: "
        "it does not multiply its own input, model.layers.1.mlp/Mul: it is read twice); "
        "model.norm/Mul: it is no layer's"
    )


def test_a_layer_without_any_candidate():
    said = read_expectation("layers").unmet(report(0), 2)
    assert said is not None
    assert said.endswith("layer 1 has 0 of 1 (nothing there looks like what it matches)")


def test_too_many():
    said = read_expectation(1).unmet(report(0, 1), 2)
    assert said == "rewrote 2 places, expected 1 (`1`)"
