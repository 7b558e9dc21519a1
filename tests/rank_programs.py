"""Traced tiny models after all passes, and their ranks; the checkpoint is random numbers."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compiler.contracts.invariants import Invariant
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.pass_base import Pass
from compiler.contracts.program import Phase, Program
from compiler.contracts.weight_values import RowReader
from compiler.contracts.weights import CheckpointRef, StoredTensor
from compiler.numerics.probe import random_rows
from compiler.numerics.ranks_run import RankProgram, ranks_error
from compiler.stages.trace import trace_phase
from models.llama import Llama
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.plan_kv_cache import PlanKVCache
from passes.shard_tensor_parallel import ShardTensorParallel
from passes.store_weights import StoreWeights

TOKENS, CONTEXT, HEAD_DIM, VOCABULARY = 16, 48, 8, 96
_FAMILIES: Mapping[str, ModelFamily] = {"qwen2": Qwen2(), "qwen3": Qwen3(), "llama": Llama()}
# What the LLVM target adds.
FUSED = (FuseAttention(), FuseRMSNorm(), FuseSiluMul(), StoreWeights())


@dataclass(frozen=True)
class RankModel:
    """A configuration; equal ones are traced once."""

    family: str = "qwen2"
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 48
    vocabulary: int = VOCABULARY
    has_all_biases: bool = False
    is_tied: bool = False

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "model_type": self.family,
            "hidden_size": self.heads * HEAD_DIM,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": 2,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.is_tied,
            "attention_bias": self.has_all_biases,
            "mlp_bias": self.has_all_biases,
        }

    def reader(self) -> RowReader:
        """The checkpoint's numbers."""
        return random_rows(self._checkpoint().tensors)

    def whole(
        self, *, phase: Phase = "prefill", added: Sequence[Pass] = (), fused: Sequence[Pass] = FUSED
    ) -> tuple[Program, tuple[Invariant, ...]]:
        """The program after all passes, and what must hold of it.

        Args:
            phase: Which.
            added: Passes behind the default ones.
            fused: Passes that a target adds.
        """
        program: Program = pickle.loads(_traced(self, phase))
        keep = KeepQKVBias()
        invariants = keep.invariants(program)
        default = (FoldConstants(), FoldMask(), PlanKVCache(), InsertStridedSlice())
        for one in (*default, *added, *fused):
            if phase in one.phases:
                one.run(program)
                program.prune_parameters()
        return program, invariants

    def _checkpoint(self) -> CheckpointRef:
        config = self.config()
        shapes = _FAMILIES[self.family].tensors(config)
        tensors = {
            name: StoredTensor(Path(), 0, shape, "float32") for name, shape in shapes.items()
        }
        return CheckpointRef(Path(), config, tensors, digest="random")


@cache
def _traced(model: RankModel, phase: Phase) -> bytes:
    tokens = TOKENS if phase == "prefill" else 1
    checkpoint = model._checkpoint()
    family = _FAMILIES[model.family]
    return pickle.dumps(trace_phase(family, checkpoint, phase, tokens=tokens, context=CONTEXT))


def shards(ways: int, *, align_qkv: bool = False) -> tuple[ShardTensorParallel, ...]:
    """The pass of each rank."""
    return tuple(ShardTensorParallel(ways, rank, align_qkv) for rank in range(ways))


def ranks_of(whole: Program, passes: Sequence[Pass]) -> list[RankProgram]:
    """Every rank; each must be cut."""
    found: list[RankProgram] = []
    for one in passes:
        program = whole.copy()
        report = one.run(program)
        program.prune_parameters()
        assert report.rewrites, report.skips
        found.append(RankProgram(one, program))
    return found


def error_of(model: RankModel, whole: Program, ranks: Sequence[RankProgram]) -> float:
    """The largest difference in float32; a difference in float64 raises."""
    return ranks_error(whole, ranks, model.reader(), vocabulary=model.vocabulary)
