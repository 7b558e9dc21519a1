"""A report as `compare` fills it: seeded figures of a model of 30 layers, whole and in parts."""

import math
import random

from compiler.contracts.comparison import (
    Comparison,
    Divergence,
    Finding,
    Ladder,
    LadderStep,
    Level,
    Measures,
    Report,
    SemanticCheck,
    StepComparison,
    TapComparison,
    TokenStrip,
)
from compiler.contracts.taps import LAYER_TAPS

LIMITS = {
    "max_abs": 1e-3,
    "max_rel": 1e-3,
    "max_local": 1e-3,
    "min_cosine": 0.9999,
    "min_top1": 1.0,
    "min_greedy": 1.0,
    "max_kl": 1e-4,
}
# Swallowed by fused operators; a target recomputes them.
_SWALLOWED = ("q", "k", "v", "gate", "up")
# A fault in one layer, which everything after it carries on.
_FAULT = (17, "down")


def measures(max_rel: float) -> Measures:
    """Measures that agree with one another."""
    snr = math.inf if max_rel == 0 else -20 * math.log10(max_rel) + 12
    return Measures(max_rel * 24, max_rel * 3, max_rel, max(0.0, 1 - max_rel**2), snr)


def passing_comparison(*, layers: int = 30, level: Level = "tap") -> Comparison:
    """Rounding alone: every figure inside its limit."""
    return _comparison("torch", "tvm_llvm", layers=layers, level=level, is_faulty=False)


def failing_comparison(*, layers: int = 30, level: Level = "tap") -> Comparison:
    """One layer computes something else from there on."""
    return _comparison("torch", "onnxruntime", layers=layers, level=level, is_faulty=True)


def sample_report() -> Report:
    """Two candidates, one of them wrong; a ladder of 6 steps; 6 semantic checks."""
    return Report(
        comparisons=(failing_comparison(), passing_comparison()),
        ladder=ladder(),
        semantic={"tvm_llvm": semantic_checks()},
        environment={
            "model": "SmolLM2-135M, 30 layers, fp32",
            "inputs": "sha256 5f2c9b1e0a7d4c3f8e6b5a49382716058c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f",
            "cpu": "AMD EPYC 7B13, 2 threads",
            "torch": "2.13.0+cpu",
            "onnxruntime": "1.31.1",
            "apache-tvm": "0.27.0.post1",
            "seed": "0",
        },
    )


def ladder() -> Ladder:
    """Six steps, one of which undoes some of another."""
    shares = (0.02, 0.07, 0.61, -0.06, 0.31, 0.05)
    names = (
        "trace",
        "passes: canonical",
        "quantize",
        "passes: fusion",
        "target: tvm_llvm",
        "window 64",
    )
    total = 0.0
    steps = []
    for name, share in zip(names, shares, strict=True):
        total += share
        steps.append(
            LadderStep(
                name=name,
                max_abs=abs(share) * 4.1e-2,
                rms=abs(share) * 6.3e-3,
                share=share,
                total_max_abs=total * 4.1e-2,
                kl=total**2 * 3.1e-5,
            )
        )
    return Ladder(
        reference="torch",
        steps=tuple(steps),
        largest="quantize",
        layer=11,
        point="down",
        said="61% of the whole difference comes from 'quantize'.",
    )


def semantic_checks() -> tuple[SemanticCheck, ...]:
    """One of six fails, one does not apply."""
    held = ("causality", "prefill-decode", "window-split", "reset")
    failed = SemanticCheck(
        "padding",
        "fail",
        "keys of padded rows change the logits of position 37: 0.0132, at most 1e-05",
        token=37,
        layer=4,
        max_rel=1.32e-2,
        limit=1e-5,
    )
    passed = tuple(
        SemanticCheck(name, "pass", "", max_rel=max_rel, limit=1e-5)
        for name, max_rel in zip(held, (0.0, 2.1e-6, 1.8e-6, 0.0), strict=True)
    )
    batch = SemanticCheck("batch-rows", "not-applicable", "the bundle has a batch of one")
    return (*passed, failed, batch)


def _comparison(
    reference: str, candidate: str, *, layers: int, level: Level, is_faulty: bool
) -> Comparison:
    dice = random.Random(f"{candidate} {layers} {level}")
    steps = _steps(dice, is_faulty)
    near_ties = sum(step.is_near_tie for step in steps)
    strips = _strips(dice, is_faulty)
    equal = [
        a == b for strip in strips for a, b in zip(strip.reference, strip.candidate, strict=True)
    ]
    return Comparison(
        reference=reference,
        candidate=candidate,
        level=level,
        steps=steps,
        taps=_taps(dice, layers, level, is_faulty),
        strips=strips,
        top1_agreement=0.9787 if is_faulty else 1.0,
        top5_agreement=0.9625 if is_faulty else 1.0,
        greedy_agreement=sum(equal) / len(equal),
        near_ties=near_ties,
        first_divergence=Divergence(3, 9, 4211, 318) if is_faulty else None,
        perplexity=(14.2031, 14.3369 if is_faulty else 14.2032),
        findings=_findings() if is_faulty else (),
        limits=LIMITS,
    )


def _steps(dice: random.Random, is_faulty: bool) -> tuple[StepComparison, ...]:
    scale = 40.0 if is_faulty else 1.0
    steps = []
    for prompt in range(6):
        for step in range(16):
            error = scale * 10 ** dice.gauss(-5.9, 0.25)
            margin = 10 ** dice.gauss(-0.1, 0.7)
            found = measures(error)
            steps.append(
                StepComparison(
                    name=f"prompt{prompt}/step{step}/logits",
                    status="fail" if found.max_abs > LIMITS["max_abs"] else "pass",
                    measures=found,
                    kl=error**2 * 1e4,
                    is_top1_equal=not (is_faulty and dice.random() < 0.03),
                    top5_overlap=1.0,
                    margin=margin,
                    is_near_tie=margin < 2 * found.max_abs or (prompt, step) == (1, 6),
                )
            )
    return tuple(steps)


def _strips(dice: random.Random, is_faulty: bool) -> tuple[TokenStrip, ...]:
    strips = []
    for prompt, length in enumerate((1, 26, 64, 83, 7, 5)):
        reference = tuple(dice.randrange(49152) for _ in range(16))
        candidate = reference
        if is_faulty and prompt == 3:
            candidate = (*reference[:9], *(dice.randrange(49152) for _ in range(7)))
        near_ties = (6,) if prompt == 1 else ()
        strips.append(TokenStrip(f"prompt{prompt}", length, reference, candidate, near_ties))
    return tuple(strips)


def _taps(
    dice: random.Random, layers: int, level: Level, is_faulty: bool
) -> tuple[TapComparison, ...]:
    if level == "end-to-end":
        return ()
    points = LAYER_TAPS if level == "tap" else ("keys", "values", "resid2")
    taps = [_tap(None, "embed", 0.0, 0.0)]
    accumulated = 2e-7
    for layer in range(layers):
        is_broken = is_faulty and layer >= min(_FAULT[0], layers - 1)
        accumulated *= 1.11 * 10 ** dice.gauss(0, 0.03)
        if is_faulty and layer == min(_FAULT[0], layers - 1):
            accumulated += 2.4e-3
        for point in points:
            local = 10 ** dice.gauss(-6.6, 0.3)
            if point == "norm1" and layer % 4 == 0:
                local = 0.0
            if is_broken and (point == _FAULT[1] or level == "layer") and accumulated > 1e-3:
                local = 2.3e-3 if layer == min(_FAULT[0], layers - 1) else local
            status = local > LIMITS["max_local"]
            taps.append(_tap(layer, point, accumulated, local, is_wrong=status))
    return (
        *taps,
        _tap(None, "norm", accumulated * 1.1, 3e-7),
        _tap(None, "logits", accumulated, 4e-7),
    )


def _tap(
    layer: int | None, point: str, accumulated: float, local: float, *, is_wrong: bool = False
) -> TapComparison:
    return TapComparison(
        layer=layer,
        point=point,
        status="fail" if is_wrong else "pass",
        call="prompt2/prefill1",
        accumulated=measures(accumulated),
        local=measures(local),
        is_recomputed=point in _SWALLOWED,
    )


def _findings() -> tuple[Finding, ...]:
    return (
        Finding(
            "fault",
            "model.layers.17/down",
            "the first tap that is wrong by itself: 0.0023 of the largest magnitude, at most 0.001",
            "compare --targets torch,onnxruntime@fold-mask tells which pass it came with",
            layer=17,
            point="down",
        ),
        Finding(
            "limit",
            "prompt3/step9/logits",
            "the largest absolute difference is 0.00412, at most 0.001",
            "max_abs: 0.0042 would pass",
        ),
        Finding(
            "limit",
            "onnxruntime",
            "7 of 96 greedy tokens differ: 92.7%, at least 100%",
        ),
    )
