"""What a bundle is: the manifest's schema, and the folder that it describes.

    <name>/manifest.json
           prefill_<P>_rank<r>/  decode_<C>_rank<r>/    module files, and what the target wrote
           params/rank<r>.safetensors                   mapped at run time, shared by the phases;
           params/<phase>_rank<r>.safetensors           instead, where they do not share
           ir/                                          a snapshot of each phase after each pass
           tokenizer files

Writing is `compiler.stages.package`, opening and verifying `compiler.stages.open_bundle`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compiler.contracts.program import LogitsOf, Phase, TensorSpec

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
PARAMS_FOLDER = "params"


def params_file(rank: int, phase: Phase | None = None) -> str:
    """A rank's parameters, relative to the bundle; those of one phase where each has its own."""
    return f"{PARAMS_FOLDER}/{f'{phase}_' if phase else ''}rank{rank}.safetensors"


@dataclass(frozen=True)
class ModuleEntry:
    """One compiled phase of one rank.

    Attributes:
        phase: `prefill` or `decode`.
        rank: Tensor-parallel rank.
        folder: Folder in the bundle, relative.
        tokens: Tokens of one call.
        inputs: Activations, in the order of the call.
        outputs: Results, in order; those in `aliases` are inputs written in place.
        params: Parameter names in the order of the call, after the activations.
        stored: Parameter name -> tensor name in `Manifest.params_file`.
        aliases: Output name -> input name.
        logits_of: Whose logits it gives; `last` asks for windows that are full.
        target: What the target keeps for itself (entry point, CPU features, ...), JSON values.
    """

    phase: Phase
    rank: int
    folder: str
    tokens: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: tuple[str, ...]
    stored: Mapping[str, str]
    aliases: Mapping[str, str]
    logits_of: LogitsOf
    target: Mapping[str, object]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: all that says what the bundle is. No time stamps, no absolute paths.

    Attributes:
        name: The bundle's name, from the YAML.
        digest: sha256 over all that decides the content (resolved config, checkpoint, tools).
        target: The target that built it and opens it.
        config: The resolved configuration, less the workspace.
        checkpoint: Content digest and architecture of the checkpoint.
        window: Prefill window P.
        context: Positions of the KV cache C.
        vocabulary: Number of logits.
        modules: Compiled phases.
        passes: The pass records: name, phase, rewrites, skips.
        quantization: By phase, how weights, activations and the cache are rounded, as
            `frontend.quantize` asks for it; empty where it asks for nothing.
        tools: Versions of what built it.
        files: Relative path -> sha256 of every other file in the bundle.
        sizes: Relative path -> bytes.
    """

    name: str
    digest: str
    target: str
    config: Mapping[str, object]
    checkpoint: Mapping[str, object]
    window: int
    context: int
    vocabulary: int
    modules: tuple[ModuleEntry, ...]
    passes: tuple[Mapping[str, object], ...]
    tools: Mapping[str, str]
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    quantization: Mapping[str, object] = field(default_factory=dict[str, object])

    def params_file(self, entry: ModuleEntry) -> str:
        """Where a module's parameters lie, relative: the rank's file, or one of the phase's own."""
        own = params_file(entry.rank, entry.phase)
        return own if own in self.files else params_file(entry.rank)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: a verified manifest and where it lies."""

    path: Path
    manifest: Manifest

    def params_file(self, entry: ModuleEntry) -> Path:
        """The file of a module's parameters."""
        return self.path / self.manifest.params_file(entry)

    @property
    def ranks(self) -> int:
        """How many ranks it was built for."""
        return 1 + max(entry.rank for entry in self.manifest.modules)

    def module(self, phase: Phase, *, rank: int = 0) -> ModuleEntry | None:
        """The entry of one phase and rank; None where it was not built (prefill only)."""
        for entry in self.manifest.modules:
            if entry.phase == phase and entry.rank == rank:
                return entry
        return None
