"""Right decoders of several shapes pass; each planted fault is caught, in its layer."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from built_bundles import BuiltBundles, TinyModel
from window_decoder import Fault, Sizes, WindowDecoder

from compiler.contracts.comparison import SemanticCheck
from compiler.contracts.errors import TargetError
from compiler.contracts.program import Phase
from compiler.contracts.runner import Runner
from compiler.stages.open_bundle import open_bundle
from compiler.stages.semantic import check_semantics
from targets.llvm.target import LLVMTarget

LIMIT = 1e-5
NAMES = ("causality", "prefill-decode", "window-split", "padding", "reset", "batch-rows")
SIZES = Sizes()


class Whole(Runner):
    """The same decoder without windows: every token by decode."""

    def __init__(self, inner: WindowDecoder) -> None:
        self._inner = inner
        self.vocabulary, self.context = inner.vocabulary, inner.context
        self.layers = inner.layers

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        logits = [self._inner.extend([token]) for token in tokens]
        self.length = self._inner.length
        return logits[-1]

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self._inner.rewind(length)

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self._inner.cache_rows(layer, start, stop)


class Hidden(WindowDecoder):
    """Shows nothing but logits."""

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        raise TargetError("it does not show its cache")


class Growing(WindowDecoder):
    """Shows no rows past its length: there are none."""

    _filled = 0

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        self._filled = past + valid
        return super().step(phase, tokens, past=past, valid=valid)

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self._filled = length

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if stop > self._filled:
            raise TargetError("there are no such rows")
        return super().cache_rows(layer, start, stop)


def checked(runner: Runner, *, window: int = 4, seed: int = 0) -> dict[str, SemanticCheck]:
    found = check_semantics(runner, window=window, seed=seed, limit=LIMIT)
    assert tuple(check.name for check in found) == NAMES
    assert runner.length == 0
    return {check.name: check for check in found}


def statuses(checks: dict[str, SemanticCheck]) -> dict[str, str]:
    return {name: check.status for name, check in checks.items() if check.status != "pass"}


@pytest.mark.parametrize(
    ("sizes", "skipped"),
    [
        (SIZES, []),
        (replace(SIZES, window=8, context=8), []),
        (replace(SIZES, window=8, context=9), []),
        (replace(SIZES, window=5, context=64, kv_heads=4), []),
        (replace(SIZES, window=16, context=300, layers=1, kv_heads=1), []),
        (replace(SIZES, window=2), []),
        (replace(SIZES, window=1), ["padding", "prefill-decode"]),
        (replace(SIZES, has_decode=False), ["prefill-decode"]),
        (replace(SIZES, window=8, context=8, has_decode=False), ["prefill-decode"]),
        (replace(SIZES, takes_padding=False), ["padding"]),
        (replace(SIZES, takes_padding=False, has_decode=False), ["padding", "prefill-decode"]),
        (
            replace(SIZES, context=4, takes_padding=False, has_decode=False),
            ["padding", "prefill-decode", "window-split"],
        ),
        (
            replace(SIZES, context=1),
            ["causality", "padding", "prefill-decode", "reset", "window-split"],
        ),
        (replace(SIZES, context=2), []),
        (replace(SIZES, context=3, window=3), []),
        (replace(SIZES, vocabulary=2), []),
    ],
    ids=str,
)
def test_a_right_decoder_passes(sizes: Sizes, skipped: list[str]) -> None:
    checks = checked(WindowDecoder(sizes))
    assert statuses(checks) == dict.fromkeys([*skipped, "batch-rows"], "not-applicable")
    for name in ("causality", "padding", "reset"):
        assert (checks[name].max_rel, checks[name].limit) == (0.0, 0.0)
    for name in ("prefill-decode", "window-split"):
        assert checks[name].limit == LIMIT
        assert checks[name].max_rel < LIMIT


def test_other_kernels_are_measured() -> None:
    checks = checked(WindowDecoder(SIZES))
    assert 0 < checks["prefill-decode"].max_rel < LIMIT
    assert 0 < checks["window-split"].max_rel < LIMIT
    strict = check_semantics(WindowDecoder(SIZES), window=4, seed=0, limit=0.0)
    assert [check.status for check in strict[1:3]] == ["fail", "fail"]


def test_what_does_not_apply_says_why() -> None:
    def said(sizes: Sizes) -> dict[str, str]:
        checks = checked(WindowDecoder(sizes)).values()
        return {check.name: check.said for check in checks if check.status == "not-applicable"}

    assert said(SIZES) == {"batch-rows": "the runner holds one prompt"}
    full = "prefill gives the last row's logits: windows are full"
    assert said(replace(SIZES, takes_padding=False, has_decode=False, context=4)) == {
        "prefill-decode": "there is no decode graph",
        "window-split": "the context holds one window of 4, which must be full",
        "padding": full,
        "batch-rows": "the runner holds one prompt",
    }
    assert (
        said(replace(SIZES, context=1))["causality"] == "the context holds 1 token, two are needed"
    )
    assert said(replace(SIZES, window=1))["padding"] == "a window of one token has no padding"
    assert (
        said(replace(SIZES, window=1))["prefill-decode"]
        == "each of 2 tokens is decoded in any case"
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("fault", "name", "layers"),
    [
        ("looks-ahead", "causality", (0, 1, 2, 3)),
        ("looks-ahead-in-call", "causality", (0, 1, 2)),
        ("one-scale", "causality", (0, 1, 2, 3)),
        ("one-scale", "padding", (0, 1, 2, 3)),
        ("keys-late", "causality", (0, 1, 2, 3)),
        ("keys-late", "padding", (0, 1, 2, 3)),
        ("decode-keys-late", "padding", (0, 1, 2, 3)),
        ("padding-written", "padding", (0, 1, 2, 3)),
        ("clamped-write", "padding", (0, 1, 2, 3)),
        ("never-forgets", "reset", (0, 1, 2)),
        ("decode-position", "prefill-decode", (0, 1, 2, 3)),
        ("decode-position", "window-split", (0, 1, 2, 3)),
    ],
)
def test_a_fault_is_caught_in_its_layer(
    fault: Fault, name: str, layers: tuple[int, ...], seed: int
) -> None:
    for layer in layers:
        for sizes in (SIZES, replace(SIZES, window=8, context=8)):
            check = checked(WindowDecoder(sizes, fault, layer), seed=seed)[name]
            assert (check.status, check.layer) == ("fail", layer), (sizes, check)
            assert check.token is not None
            assert f"layer {layer}" in check.said


def test_the_position_is_named() -> None:
    """A window of 4, 7 tokens: the padded window has 2 real tokens behind the empty cache."""

    def failed(fault: Fault, name: str, layer: int = 2) -> SemanticCheck:
        return checked(WindowDecoder(SIZES, fault, layer))[name]

    ahead = failed("looks-ahead", "causality")
    row = ahead.token
    assert row is not None
    assert ahead.said.startswith(
        f"with other tokens from {row + 1} on, the keys and values of layer 3 at position {row} are"
    )
    assert ahead.said.endswith("they must be equal: the attention of layer 2 sees a later token")
    last = failed("looks-ahead", "causality", 3)
    assert f"the logits after position {last.token} are off by" in last.said
    assert last.said.endswith("the attention of layer 3, the last, sees a later token")
    late = failed("keys-late", "padding")
    assert late.token == 2
    assert late.said.startswith(
        "with token 0 as padding behind 0 + 2 tokens, the keys of layer 2 at position 2 are off by"
    )
    assert (
        "the keys of layer 2 at position 3 did not change" in failed("keys-late", "causality").said
    )
    assert failed("padding-written", "padding").token == 2
    decoded = failed("decode-position", "prefill-decode")
    assert decoded.token == 2
    assert decoded.said.startswith("with 2 tokens read and then one, the keys of layer 2 at posit")
    assert decoded.said.endswith("of the largest magnitude; the limit is 1e-05")
    assert decoded.max_rel > 1e-2
    split = failed("decode-position", "window-split")
    assert split.token == 0
    assert split.said.startswith("with 7 tokens read one and then the rest, the keys of layer 2")
    forgot = failed("never-forgets", "reset")
    assert forgot.token == 0
    assert forgot.said.startswith("with 3 tokens read again after 7 others, the keys and values of")
    assert forgot.said.endswith("the attention of layer 2 sees what they left")


def test_the_last_row_of_a_padded_window_is_caught() -> None:
    checks = checked(WindowDecoder(SIZES, "last-row"))
    assert statuses(checks) == {
        "prefill-decode": "fail",
        "window-split": "fail",
        "padding": "fail",
        "batch-rows": "not-applicable",
    }
    assert checks["padding"].layer is None
    assert checks["padding"].token == 1
    assert "the logits after position 1 are off by" in checks["padding"].said


def test_what_is_left_behind_is_seen_by_the_last_layer() -> None:
    check = checked(WindowDecoder(SIZES, "never-forgets", 3))["reset"]
    assert (check.status, check.layer, check.token) == ("fail", None, 2)


def test_a_leak_that_nothing_reads_changes_nothing() -> None:
    """In the last layer, of real tokens alone: rows before the last one reach no logits."""
    checks = checked(WindowDecoder(SIZES, "looks-ahead-in-call", 3))
    assert statuses(checks) == {"batch-rows": "not-applicable"}


@pytest.mark.parametrize("layer", [0, 3])
def test_nan_equals_nothing(layer: int) -> None:
    checks = checked(WindowDecoder(SIZES, "nan", layer))
    assert set(statuses(checks)) == set(NAMES)
    for name in NAMES[:-1]:
        assert checks[name].status == "fail"
        assert np.isnan(checks[name].max_rel)
        assert "are not finite" in checks[name].said
        assert checks[name].layer == layer


@pytest.mark.parametrize("fault", ["", "looks-ahead", "decode-position", "never-forgets"])
def test_a_hidden_cache_leaves_the_logits(fault: Fault) -> None:
    checks = checked(Hidden(SIZES, fault, 1))
    caught = {"": set(), "looks-ahead": {"causality"}, "decode-position": {"prefill-decode"}}
    assert caught.get(fault, {"reset"}) <= set(statuses(checks))
    for name in NAMES[:-1]:
        assert checks[name].status == ("pass" if not fault else checks[name].status)
        assert checks[name].said.endswith("; of logits alone: it does not show its cache")
        assert checks[name].layer is None


def test_a_runner_of_no_layers_is_held_by_its_logits() -> None:
    runner = WindowDecoder(SIZES)
    blind = Whole(runner)
    blind.layers = 0
    checks = checked(blind)
    assert checks["causality"].said == "holds; of logits alone: Whole names no layers"


def test_rows_that_do_not_exist_are_not_asked_for() -> None:
    assert statuses(checked(Growing(SIZES))) == {"batch-rows": "not-applicable"}


def test_a_runner_without_windows() -> None:
    checks = checked(Whole(WindowDecoder(SIZES)))
    assert statuses(checks) == dict.fromkeys(("padding", "batch-rows"), "not-applicable")
    assert checks["padding"].said == "the runner has no windows"
    failed = checked(Whole(WindowDecoder(SIZES, "looks-ahead", 3)))["causality"]
    assert (failed.status, failed.layer) == ("fail", 3)


def test_a_refusal_fails_one_check_and_stops_no_other() -> None:
    class Refusing(WindowDecoder):
        def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
            if tokens[0, -1] == self.vocabulary - 1 and valid < tokens.shape[1]:
                raise TargetError("such padding is refused")
            return super().step(phase, tokens, past=past, valid=valid)

    checks = checked(Refusing(SIZES))
    assert statuses(checks) == {"padding": "fail", "batch-rows": "not-applicable"}
    assert checks["padding"].said == "the runner refused a call: such padding is refused"


def test_equal_seeds_give_equal_checks() -> None:
    one, other = (checked(WindowDecoder(SIZES, "looks-ahead", 2)) for _ in range(2))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "skipped"),
    [
        (TinyModel(), []),
        (TinyModel("prefill-only", context=None), ["prefill-decode"]),
        (TinyModel("last-row", kept="last"), ["padding"]),
    ],
    ids=lambda value: value.name if isinstance(value, TinyModel) else "",
)
def test_a_bundle_passes(built_bundles: BuiltBundles, model: TinyModel, skipped: list[str]) -> None:
    runner = LLVMTarget().open(open_bundle(built_bundles.bundle(model)))
    checks = checked(runner, window=model.window)
    runner.close()
    assert statuses(checks) == dict.fromkeys([*skipped, "batch-rows"], "not-applicable")
    assert not any("logits alone" in check.said for check in checks.values())
