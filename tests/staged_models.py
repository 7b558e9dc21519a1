"""Traced models after the passes of a list, as a target that opens programs takes them."""

from collections.abc import Mapping, Sequence

import numpy as np
from program_runs import run_pass
from traced_models import TracedModels

from compiler.contracts.pass_base import Pass
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer, Tap
from compiler.contracts.target_base import ProgramModel
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from passes.eliminate_dead import EliminateDead
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQKV
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_rotary import FuseRotary
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.pack_weights import PackWeights
from passes.pad_vocabulary import PadVocabulary
from passes.plan_kv_cache import PlanKVCache
from passes.round_activations import RoundActivations
from passes.store_kv_cache import StoreKVCache
from passes.store_weights import StoreWeights

_FOLDED = (KeepQKVBias(), FoldConstants(), FoldMask())
_PLANNED = (*_FOLDED, PlanKVCache(), InsertStridedSlice())
_FUSED = (FuseAttention(), FuseRMSNorm(), FuseSiluMul())
# Points of the pipeline: after each that changes the signature, and ends that differ.
POINTS: Mapping[str, Sequence[Pass]] = {
    "trace": (),
    "fold-mask": _FOLDED,
    "plan-kv-cache": _PLANNED[:-1],
    "slice": _PLANNED,
    "llvm": (*_PLANNED, *_FUSED, StoreWeights(dtype="float32"), FoldConstants()),
    "all": (
        *_PLANNED,
        FuseQKV(),
        FuseGateUp(),
        FuseRotary(),
        PadVocabulary(multiple=32),
        *_FUSED,
        StoreWeights(dtype="float32"),
        FoldConstants(),
    ),
    "int8": (*_PLANNED, AnnotateInt8QDQ(), *_FUSED, StoreWeights(dtype="float32")),
    "vastai": (*_PLANNED, FuseQKV(), AnnotateInt8QDQ(operator="vastai"), StoreWeights()),
    "float16": (*_PLANNED, CastDtype(dtype="float16"), StoreWeights(), FoldConstants()),
    "bfloat16": (*_PLANNED, FuseRotary(), *_FUSED, CastDtype(dtype="bfloat16"), StoreWeights()),
    "stored bfloat16": (*_PLANNED, *_FUSED, StoreWeights(dtype="bfloat16")),
    "int8 cache": (*_PLANNED, *_FUSED, StoreKVCache(dtype="int8"), StoreWeights()),
    "int8 cache, unfused": (*_PLANNED, StoreKVCache(dtype="int8"), StoreWeights()),
    "bfloat16 cache": (*_PLANNED, *_FUSED, StoreKVCache(dtype="bfloat16"), StoreWeights()),
    "packed int8": (
        *_PLANNED,
        *_FUSED,
        AnnotateInt8QDQ(),
        StoreWeights(dtype="float32"),
        PackWeights(),
    ),
    "packed bfloat16": (
        *_PLANNED,
        *_FUSED,
        StoreKVCache(dtype="bfloat16"),
        StoreWeights(dtype="bfloat16"),
        PackWeights(),
        RoundActivations(),
    ),
    "bfloat16 and its cache": (
        *_PLANNED,
        *_FUSED,
        CastDtype(dtype="bfloat16"),
        StoreKVCache(dtype="bfloat16"),
        EliminateDead(),
        StoreWeights(),
    ),
}


def staged(
    traced_models: TracedModels, name: str, passes: Sequence[Pass], *, layers: int = 2
) -> ProgramModel:
    """Both phases of a traced model after some passes."""
    programs = traced_models.programs(name, layers=layers)
    for program in programs:
        for rewriting in passes:
            if program.phase in rewriting.phases:
                run_pass(rewriting, program)
    return ProgramModel(programs, traced_models.checkpoint(name, layers=layers))


class Recorder(Observer):
    """Keeps what it is shown, call by call, and puts given values in its place.

    Args:
        instead: What a tap is replaced by, in the calls that show it.
    """

    def __init__(self, instead: Mapping[Tap, np.ndarray] | None = None) -> None:
        self.seen: list[tuple[Tap, np.ndarray]] = []
        self._instead = instead or {}

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        self.seen.append((tap, rows))
        return self._instead.get(tap)


def observed(
    runner: Runner, tokens: Sequence[int], instead: Mapping[Tap, np.ndarray] | None = None
) -> tuple[np.ndarray, dict[Tap, np.ndarray]]:
    """The logits and the taps of one call."""
    recorder = Recorder(instead)
    runner.observe(recorder)
    logits = runner.extend(tokens)
    runner.observe(None)
    found = dict(recorder.seen)
    assert len(found) == len(recorder.seen), "tokens of one call, each tap once"
    return logits, found
