"""Contracts applied to numbers."""

import numpy as np
import pytest

from compiler.contracts.pass_base import Contract
from compiler.numerics.tolerance import first_breach, largest_error

CLOSE = Contract.close(rtol=1e-3, atol=1e-2)


def outputs(**values: object) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


@pytest.mark.parametrize(
    ("contract", "wanted", "found"),
    [
        (Contract.exact(), [1.0, 2.0], [1.0, 2.0]),
        (CLOSE, [1.0, 100.0], [1.0109, 100.109]),
        (Contract.changes("logits", atol=0.5), [1.0], [1.4]),
        (Contract.exact(), [], []),
    ],
)
def test_what_is_kept(contract: Contract, wanted: list[float], found: list[float]):
    assert first_breach(contract, outputs(y=wanted), outputs(y=found)) is None


def test_outputs_that_nobody_asked_for_are_left_alone():
    assert first_breach(CLOSE, outputs(y=[1]), outputs(y=[1], z=[np.nan])) is None


@pytest.mark.parametrize(
    ("found", "finding", "said"),
    [
        (outputs(), "missing", "y is missing"),
        (outputs(y=[[1.0], [2.0]]), "shape", "y has shape [2, 1], expected [2]"),
        ({"y": np.ones(2)}, "dtype", "y is float64, expected float32"),
        (outputs(y=[1.0, np.nan]), "non-finite", "y[1] is nan"),
        (outputs(y=[-np.inf, 2.0]), "non-finite", "y[0] is -inf"),
        (
            outputs(y=[1.02, 2.03]),
            "value",
            "y[1] is 2.02999997, expected 2 (off by 0.03, allowed 0.022)",
        ),
    ],
)
def test_what_is_not(found: dict[str, np.ndarray], finding: str, said: str):
    breach = first_breach(CLOSE, outputs(y=[1.0, 2.0]), found)
    assert breach is not None
    assert (breach.finding, breach.said) == (finding, said)


def test_a_small_entry_rounds_as_the_large_ones_do():
    large = outputs(y=[24.0, 0.1])
    assert first_breach(Contract.close(rtol=0, atol=1e-5), large, outputs(y=[24.0, 0.1002])) is None
    assert first_breach(Contract.close(rtol=0, atol=1e-5), large, outputs(y=[24.0, 0.1004]))
    small = outputs(y=[1e-3, 1e-4])
    assert first_breach(Contract.close(rtol=0, atol=1e-5), small, outputs(y=[1e-3, 1.2e-4]))


def test_exact_means_the_last_bit():
    nearly = np.nextafter(np.float32(1), np.float32(2))
    assert first_breach(Contract.exact(), outputs(y=[1.0]), outputs(y=[nearly])) is not None


@pytest.mark.parametrize("wild", [np.nan, np.inf])
def test_numbers_that_were_wild_before_the_pass_are_a_finding(wild: float):
    breach = first_breach(CLOSE, outputs(y=[wild]), outputs(y=[wild]))
    assert breach is not None
    assert breach.said == f"y[0] is {wild} before the pass already"


def test_the_entry_that_is_farthest_out_is_named_and_float64_says_who_is_right():
    wanted, found = outputs(y=[[1.0, 2.0], [3.0, 4.0]]), outputs(y=[[1.5, 2.0], [5.0, 4.0]])
    breach = first_breach(CLOSE, wanted, found, float64={"y": np.array([[1, 2], [3.25, 4]])})
    assert breach is not None
    assert breach.index == (1, 0)
    assert breach.said.endswith("; in float64 it is 3.25")


def test_the_first_output_in_order():
    breach = first_breach(CLOSE, outputs(a=[1], b=[1]), outputs(b=[9], a=[1]))
    assert breach is not None
    assert breach.output == "b"


def test_largest_error():
    assert largest_error(outputs(a=[1, 2], b=[3]), outputs(a=[1, 2.5], b=[2])) == 1.0
    assert largest_error(outputs(a=[]), outputs(a=[])) == 0.0
    assert np.isnan(largest_error(outputs(a=[1]), outputs(a=[np.nan])))


@pytest.mark.parametrize(
    ("contract", "text"),
    [
        (Contract.exact(), "exact"),
        (Contract.close(1e-5, 0), "close(rtol=1e-05, atol=0)"),
        (Contract.changes("logits"), "changes(logits; rtol=1e-05, atol=1e-05)"),
    ],
)
def test_a_contract_as_text(contract: Contract, text: str):
    assert str(contract) == text
