"""Two states of one runner: what is off is named, and NaN agrees with nothing."""

import numpy as np
import pytest

from compiler.comparing.agreement import Outcome, State, blame_attention, compare_states, unchanged


def state(*, start: int = 0) -> State:
    """Two layers of three rows, the largest magnitude of each being 2."""
    rows = np.array([[1, -2], [0, 1], [0.5, 1]], np.float32)
    return State(
        ((rows, rows.copy()), (rows.copy(), rows.copy())), rows[0].copy(), start, start + 3
    )


def uniform(value: float, *, rows: int = 1, width: int = 2) -> State:
    """One layer of one value, and logits likewise."""
    full = np.full((rows, width), value)
    return State(((full, full),), full[0], length=rows)


def test_equal_states_agree() -> None:
    assert compare_states("twice", state(), state(), 0.0) == Outcome()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_agrees_with_nothing(value: float) -> None:
    one = state(start=4)
    one.rows[1][0][1, 0] = value
    found = compare_states("so", one, one, np.inf)
    assert found.said == "so, the keys of layer 1 at position 5 are not finite"
    assert (found.token, found.layer, found.points) == (5, 1, ("keys",))
    assert np.isnan(found.max_rel)

    # Both: so was the layer's input.
    one.rows[1][1][1, 1] = value
    found = compare_states("so", one, one, np.inf)
    both = "so, the keys and values of layer 1 at position 5 are not finite"
    assert found.said == f"{both}: what layer 0 leaves is not"
    assert (found.token, found.layer, found.points) == (5, 0, ("keys", "values"))
    assert blame_attention(found, "padding") is found

    one = state()
    assert one.logits is not None
    one.logits[1] = value
    found = compare_states("so", one, one, np.inf)
    assert found.said == "so, the logits after position 2 are not finite"
    assert (found.token, found.layer) == (2, None)


def test_the_lowest_layer_and_its_first_row_are_named() -> None:
    other = state()
    other.rows[1][0][0] += 1
    other.rows[0][1][2] += 0.5
    other.rows[0][0][1] += 0.25
    found = compare_states("so", state(), other, 0.01)
    assert found == Outcome(
        "so, the keys and values of layer 0 at position 1 are off by 0.25 of the largest magnitude;"
        " the limit is 0.01",
        0.25,
        1,
        0,
        ("keys", "values"),
    )


def test_what_is_within_the_limit_is_measured() -> None:
    other = state()
    other.rows[1][0][0, 0] += 0.5
    assert compare_states("so", state(), other, 0.25) == Outcome(max_rel=0.25)
    assert compare_states("so", state(), other, 0.0).said.endswith("; they must be equal")


def test_a_difference_from_zeros_is_over_every_limit() -> None:
    one, other = uniform(0), uniform(1)
    assert compare_states("so", one, one, 0.0) == Outcome()
    assert compare_states("so", one, other, 1e9).max_rel == np.inf


def test_other_shapes_are_over_every_limit() -> None:
    one = uniform(1)
    found = compare_states("so", one, uniform(1, width=3), np.inf)
    assert found.said == "so, the keys and values of layer 0 have other shapes"
    assert np.isnan(found.max_rel)
    found = compare_states("so", one, State(one.rows, np.ones(4)), np.inf)
    assert found.said == "so, the logits after position 0 have other shapes"


def test_what_did_not_change_is_named() -> None:
    other = state(start=6)
    assert unchanged("so", state(start=6), other) == Outcome(
        "so, the keys of layer 0 at position 6 did not change", 0.0, 6, 0, ("keys",)
    )
    for pair in other.rows:
        for rows in pair:
            rows += 1
    assert unchanged("so", state(start=6), other) is None


def test_attention_is_to_blame_for_both() -> None:
    both = Outcome("off", 0.5, 1, 3, ("keys", "values"))
    assert blame_attention(both, "padding") == Outcome(
        "off: the attention of layer 2 sees padding", 0.5, 1, 2, ("keys", "values")
    )
    for other in (
        Outcome(),
        Outcome("off", 0.5, 1),
        Outcome("off", 0.5, 1, 3, ("values",)),
        Outcome("off", 0.5, 1, 0, ("keys", "values")),
    ):
        assert blame_attention(other, "padding") is other
