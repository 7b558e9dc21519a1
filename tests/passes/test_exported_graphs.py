"""Each pass that brings an exporter's graph to the traced form, on exports of each spelling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from exported_models import LAYERS, VARIANTS, VOCABULARY, write_export
from program_runs import run_pass, run_program, traced_inputs
from traced_models import CONTEXT, WINDOW, TracedModels

from compiler.contracts.pass_base import Pass, PassReport, Skip
from compiler.contracts.program import Phase, Program
from compiler.contracts.weights import CheckpointRef
from compiler.stages.import_onnx import import_onnx, locate_onnx
from passes.drop_nan_guard import DropNaNGuard
from passes.fold_constants import FoldConstants
from passes.fold_shapes import FoldShapes
from passes.group_queries import GroupQueries
from passes.merge_equal import MergeEqual
from passes.place_scale import PlaceScale
from passes.restore_transpose import RestoreTranspose
from passes.state_reshapes import StateReshapes
from passes.widen_angles import WidenAngles

PASSES: Sequence[Pass] = (
    FoldShapes(),
    FoldConstants(),
    StateReshapes(),
    WidenAngles(),
    RestoreTranspose(),
    PlaceScale(),
    DropNaNGuard(),
    MergeEqual(),
    GroupQueries(),
)
# How often each fires in a graph of LAYERS layers, by variant; the others find something in all.
COUNTS = {
    "widen-angles": {"eager_23": 4 * LAYERS, "sdpa_23": 4 * LAYERS},
    "restore-transpose": {"sdpa_18": LAYERS},
    "place-scale": {"sdpa_18": LAYERS},
    "drop-nan-guard": {"sdpa_18": LAYERS},
    "group-queries": dict.fromkeys(VARIANTS, LAYERS),
}
LENGTHS: dict[Phase, tuple[tuple[int, int], ...]] = {
    "prefill": ((0, WINDOW), (5, 3)),
    "decode": ((8, 1),),
}


def outputs(program: Program, checkpoint: CheckpointRef) -> list[dict[str, np.ndarray]]:
    """What it gives for whole, padded and single tokens, with and without a past."""
    return [
        run_program(
            program,
            traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY),
            checkpoint,
        )
        for past, valid in LENGTHS[program.phase]
    ]


def same(found: np.ndarray, wanted: np.ndarray, rewriting: Pass) -> bool:
    promise = rewriting.promise()
    if promise.kind == "exact":
        return np.array_equal(found, wanted)
    return np.allclose(found, wanted, rtol=promise.rtol, atol=promise.atol)


def unexpected(report: PassReport) -> list[Skip]:
    """What was declined, less the ranges of positions, which stay until fold-mask."""
    return [skip for skip in report.skips if "may be any length" not in skip.reason]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_each_pass_keeps_its_contract_and_fires_as_often_as_there_are_layers(
    tmp_path: Path, variant: str, phase: Phase
) -> None:
    path = write_export(tmp_path / "model.onnx", variant)
    checkpoint = locate_onnx(path, window=WINDOW)
    programs = import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT)
    program = programs.programs[phase]
    wanted = outputs(program, checkpoint)
    for rewriting in PASSES:
        report = run_pass(rewriting, program)
        count = COUNTS.get(rewriting.name)
        if count is not None:
            assert (rewriting.name, len(report.rewrites)) == (rewriting.name, count.get(variant, 0))
        assert (rewriting.name, unexpected(report)) == (rewriting.name, [])
        assert run_pass(rewriting, program).rewrites == ()
        found = outputs(program, checkpoint)
        for before, after in zip(wanted, found, strict=True):
            different = [n for n in before if not same(after[n], before[n], rewriting)]
            assert (rewriting.name, different) == (rewriting.name, [])
        wanted = found


@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_a_traced_graph_is_in_that_form_already(traced_models: TracedModels, name: str) -> None:
    for program in traced_models.programs(name):
        run_pass(FoldConstants(), program)
        for rewriting in PASSES:
            report = run_pass(rewriting, program)
            assert (rewriting.name, report.rewrites, unexpected(report)) == (rewriting.name, (), [])
