"""A traced model after all passes that the LLVM target takes, run call by call on onnxruntime."""

from collections.abc import Sequence

import numpy as np
from program_runs import run_pass
from traced_models import WINDOW, TracedModels

from compiler.contracts.pass_base import Pass
from compiler.contracts.program import Phase
from compiler.contracts.weight_values import value
from compiler.numerics.feeds import PAD_TOKEN
from compiler.numerics.reference_run import run_model
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

PASSES: tuple[Pass, ...] = (
    KeepQKVBias(),
    FoldConstants(),
    FoldMask(),
    PlanKVCache(),
    InsertStridedSlice(),
    FuseAttention(),
    FuseRMSNorm(),
    FuseSiluMul(),
    StoreWeights(dtype="float32"),
    FoldConstants(),
)


class WindowRuns:
    """Both phases of one model, and the caches between their calls."""

    def __init__(self, traced_models: TracedModels, name: str) -> None:
        checkpoint = traced_models.checkpoint(name)
        self.programs = traced_models.programs(name).programs
        for program in self.programs.values():
            for rewriting in PASSES:
                if program.phase in rewriting.phases:
                    run_pass(rewriting, program)
        self._models = {phase: program.model() for phase, program in self.programs.items()}
        self._parameters = {
            phase: {n: value(w, checkpoint.rows) for n, w in program.weights.items()}
            for phase, program in self.programs.items()
        }
        # What was never written may hold anything finite.
        self._caches = {
            spec.name: np.full([int(axis) for axis in spec.shape], 1e3, np.float32)
            for spec in self.programs["decode"].inputs()
            if spec.name.startswith("past_key_values.")
        }
        self.length = 0

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [vocabulary] after the last of `tokens`: one padded window, or one step."""
        phase: Phase = "decode" if len(tokens) == 1 else "prefill"
        ids = np.full((1, 1 if phase == "decode" else WINDOW), PAD_TOKEN, np.int64)
        ids[0, : len(tokens)] = tokens
        found = run_model(
            self._models[phase],
            {
                **self._parameters[phase],
                **self._caches,
                "input_ids": ids,
                "past_length": np.array([self.length], np.int64),
                "valid_length": np.array([len(tokens)], np.int64),
            },
        )
        self.length += len(tokens)
        for output, cache in self.programs[phase].aliases.items():
            self._caches[cache] = found[output]
        return found["logits"][0, -1]
