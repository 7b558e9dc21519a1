"""A one-layer traced model after all passes that the LLVM target takes, and inputs for it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from program_runs import run_pass, traced_inputs
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.pass_base import Pass
from compiler.contracts.program import Phase, Program
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

NAME, LAYERS = "gqa", 1


def rewritten(
    traced_models: TracedModels,
    phase: Phase,
    *,
    past: int,
    valid: int,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    added: Sequence[Pass] = (),
    has_storage: bool = True,
    last: Sequence[Pass] = (),
) -> tuple[Program, dict[str, np.ndarray]]:
    """The program of one phase, and what it takes; `added` stand where a user's passes do, and
    `last` behind all of the target's.

    Without storage it ends before weights are laid out for the target.
    """
    program = traced_models.programs(NAME, layers=LAYERS).programs[phase]
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    for rewriting in (
        FoldConstants(),
        FoldMask(),
        PlanKVCache(),
        InsertStridedSlice(),
        *added,
        FuseAttention(),
        FuseRMSNorm(),
        FuseSiluMul(),
        *((StoreWeights(dtype=dtype),) if has_storage else ()),
        FoldConstants(),
        *last,
    ):
        if phase in rewriting.phases:
            run_pass(rewriting, program)
            inputs = rewriting.adapt_inputs(inputs, program)
    return program, inputs
