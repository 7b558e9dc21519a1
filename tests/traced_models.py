"""Traced tiny models for the tests of passes, targets and the trace itself.

An export costs seconds and depends on neither the number of layers nor the weights, so each is made
once a session. The memo stands in for `compiler.stages.trace.export_skeleton`, as long as the
session fixture's patch lasts; `exported` remembers what was asked of it.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_graphsurgeon as gs
import pytest
from checkpoint_factory import change_config, write_checkpoint
from family_variants import write_variant

from compiler.contracts.model_base import ModelFamily
from compiler.contracts.program import ProgramSet
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.probe import CONTEXT as PROBE_CONTEXT
from compiler.numerics.probe import WINDOW as PROBE_WINDOW
from compiler.numerics.probe import ProbeModel, probe_checkpoint, random_rows
from compiler.stages import trace as trace_stage
from compiler.stages.checkpoint import locate_checkpoint
from models.llama import Llama
from models.qwen2 import Qwen2
from models.qwen3 import Qwen3

WINDOW, CONTEXT = 16, 40
VOCABULARY = 80
FAMILIES: Mapping[str, ModelFamily] = {
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
    "llama": Llama(),
}


def _write_model(name: str, folder: Path, layers: int) -> Path:
    match name:
        case "mha":
            write_checkpoint(
                folder,
                hidden=64,
                heads=4,
                kv_heads=4,
                tied=True,
                layers=layers,
                intermediate=48,
                vocabulary=VOCABULARY,
            )
            change_config(folder, rope_theta=1e6)
        case "gqa":
            write_checkpoint(
                folder,
                hidden=56,
                heads=7,
                kv_heads=1,
                layers=layers,
                intermediate=40,
                vocabulary=VOCABULARY,
                dtype="bfloat16",
            )
        case "own-head-dim":
            write_checkpoint(
                folder,
                hidden=64,
                heads=6,
                kv_heads=3,
                head_dim=16,
                layers=layers,
                intermediate=48,
                vocabulary=VOCABULARY,
            )
        case "llama":
            write_checkpoint(
                folder,
                model_type="llama",
                hidden=64,
                heads=4,
                kv_heads=2,
                tied=True,
                layers=layers,
                intermediate=48,
                vocabulary=VOCABULARY,
            )
        case _:
            write_variant(name, folder, layers=layers, vocabulary=VOCABULARY)
    return folder


class TracedModels:
    """Checkpoints, skeletons and programs by the name of a model.

    That is mha, gqa, own-head-dim, llama, or one of `family_variants`.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.exported: list[tuple[str, ...]] = []
        self._folder = folder
        self._export = trace_stage.export_skeleton
        self._skeletons: dict[str, gs.Graph] = {}
        self._pickled: dict[tuple[str, int], bytes] = {}
        self._checkpoints: dict[tuple[str, int], CheckpointRef] = {}
        patch.setattr(trace_stage, "export_skeleton", self._memo)

    def checkpoint(self, name: str, *, layers: int = 2) -> CheckpointRef:
        """Written and located once."""
        if (name, layers) not in self._checkpoints:
            folder = _write_model(name, self._folder / f"{name}-{layers}", layers)
            self._checkpoints[name, layers] = locate_checkpoint(
                str(folder), base=folder, supported=tuple(FAMILIES)
            )
        return self._checkpoints[name, layers]

    def family(self, name: str) -> ModelFamily:
        """The model's family."""
        return FAMILIES[str(self.checkpoint(name).config["model_type"])]

    def programs(self, name: str, *, layers: int = 2) -> ProgramSet:
        """Prefill of WINDOW tokens and decode with CONTEXT positions, as `trace` gives them."""
        if (name, layers) not in self._pickled:
            programs = trace_stage.trace(
                self.family(name),
                self.checkpoint(name, layers=layers),
                window=WINDOW,
                context=CONTEXT,
            )
            self._pickled[name, layers] = pickle.dumps(programs)
        return pickle.loads(self._pickled[name, layers])

    def probe(self, name: str, *, layers: int = 2) -> ProbeModel:
        """The probe of that model, as a build makes it."""
        checkpoint, family = self.checkpoint(name, layers=layers), self.family(name)
        small = probe_checkpoint(family, checkpoint, window=WINDOW, context=CONTEXT)
        if (name, -layers) not in self._pickled:
            programs = trace_stage.trace(family, small, window=PROBE_WINDOW, context=PROBE_CONTEXT)
            self._pickled[name, -layers] = pickle.dumps(programs)
        programs = pickle.loads(self._pickled[name, -layers])
        vocabulary = small.config["vocab_size"]
        assert isinstance(vocabulary, int)
        return ProbeModel(programs, random_rows(small.tensors), vocabulary)

    def full_skeleton(self, name: str, *, layers: int, tokens: int) -> gs.Graph:
        """Every layer exported, nothing stitched."""
        family, config = self.family(name), self.checkpoint(name, layers=layers).config
        return self._memo(family, config, family.layer_kinds(config), tokens=tokens)

    def _memo(
        self,
        family: ModelFamily,
        config: Mapping[str, object],
        kinds: Sequence[str],
        *,
        tokens: int,
    ) -> gs.Graph:
        self.exported.append(tuple(kinds))
        decisive = {key: value for key, value in config.items() if key != "num_hidden_layers"}
        key = repr((type(family).__name__, sorted(decisive.items()), tuple(kinds), tokens))
        if key not in self._skeletons:
            self._skeletons[key] = self._export(family, config, kinds, tokens=tokens)
        return self._skeletons[key].copy()
