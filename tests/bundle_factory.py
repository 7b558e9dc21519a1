"""A small bundle's ingredients, made without a model: what packaging and opening are tested on.

checkpoint = make_checkpoint(tmp_path / "checkpoint")
package(tmp_path / "bundle", make_draft(tmp_path / "modules"), checkpoint, ...)
"""

import json
from pathlib import Path

import numpy as np

from compiler.bundle_draft import BundleDraft, ModuleDraft
from compiler.contracts.program import Phase, TensorSpec
from compiler.contracts.weights import CheckpointRef, StoredTensor, Weight, cast, source, transpose

SHAPES = {"embed.weight": (50, 6), "proj.weight": (10, 6), "norm.weight": (6,), "odd.bias": (7,)}


def make_checkpoint(folder: Path) -> CheckpointRef:
    """Four float32 tensors in one file, and some of a tokenizer's files."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    tensors: dict[str, StoredTensor] = {}
    with (folder / "weights.bin").open("wb") as stream:
        for name, shape in SHAPES.items():
            tensors[name] = StoredTensor(
                folder / "weights.bin", offset=stream.tell(), shape=shape, dtype="float32"
            )
            stream.write(random.standard_normal(shape).astype(np.float32).tobytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    (folder / "README.md").write_text("not the bundle's business")
    return CheckpointRef(folder, {"model_type": "qwen2"}, tensors, digest="c" * 64)


def weight(name: str) -> Weight:
    """A tensor of the checkpoint as it is."""
    return source(name, SHAPES[name], "float32")


def make_module(folder: Path, phase: Phase, *, rank: int = 0) -> ModuleDraft:
    """A compiled phase: the second parameter has another name in each phase."""
    weights = {
        "embed": weight("embed.weight"),
        f"{phase}.proj": transpose(weight("proj.weight")),
        "norm": cast(weight("norm.weight"), "bfloat16"),
        "bias": weight("odd.bias"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "module.so").write_bytes(f"{phase} code of rank {rank}".encode() * 50)
    (folder / "notes").mkdir(exist_ok=True)
    (folder / "notes" / "schedule.txt").write_text("tiles\n")
    tokens = 16 if phase == "prefill" else 1
    return ModuleDraft(
        phase=phase,
        rank=rank,
        tokens=tokens,
        source_folder=folder,
        inputs=(TensorSpec("input_ids", "int64", (1, tokens)), TensorSpec("k", "float32", (32, 2))),
        outputs=(TensorSpec("logits", "float32", (1, 50)), TensorSpec("k2", "float32", (32, 2))),
        params=tuple(weights),
        weights=weights,
        aliases={"k2": "k"},
        logits_of="last_valid" if phase == "prefill" else "all",
        target={"entry": "main", "features": ["avx2"]},
    )


def make_draft(
    folder: Path, *, ranks: int = 1, digest: str = "d" * 64, merge_params: bool = True
) -> BundleDraft:
    """Both phases of every rank."""
    phases: tuple[Phase, ...] = ("prefill", "decode")
    modules = [
        make_module(folder / f"{phase}{rank}", phase, rank=rank)
        for rank in range(ranks)
        for phase in phases
    ]
    return BundleDraft(
        name="tiny-fp32-tp1-16-32",
        digest=digest,
        target="stand-in",
        config={"name": "tiny", "frontend": {"shape": {"input_ids": [[16], [32]]}}, "é": None},
        checkpoint={"digest": "c" * 64, "architecture": "Qwen2ForCausalLM"},
        window=16,
        context=32,
        vocabulary=50,
        modules=tuple(modules),
        passes=({"name": "fold-mask", "phase": "prefill", "rewrites": 2, "skips": []},),
        quantization={"prefill": {"activations": "int8"}},
        tools={"graphlower": "0.1.0"},
        snapshots={"prefill/00_traced.onnx": b"graph", "decode/00_traced.onnx": b"graph 2"},
        merge_params=merge_params,
    )
