"""What a bundle is to become: compiled phases, their parameters, and what is stored once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.contracts.bundle import params_file
from compiler.contracts.program import LogitsOf, Phase, TensorSpec
from compiler.contracts.weights import Weight
from compiler.params_file import ParamsLayout, params_layout


@dataclass(frozen=True)
class ModuleDraft:
    """One compiled phase of one rank, before it is packaged.

    Attributes:
        phase: `prefill` or `decode`.
        rank: Tensor-parallel rank.
        tokens: Tokens of one call.
        source_folder: The files that the target wrote; all are copied.
        inputs: Activations, in the order of the call.
        outputs: Results, in order.
        params: Parameter names in the order of the call.
        weights: Parameter name -> expression; holds every name of `params`.
        aliases: Output name -> the input that is written in place.
        logits_of: Whose logits it gives.
        target: What the target keeps for itself, JSON values.
    """

    phase: Phase
    rank: int
    tokens: int
    source_folder: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: tuple[str, ...]
    weights: Mapping[str, Weight]
    aliases: Mapping[str, str]
    logits_of: LogitsOf
    target: Mapping[str, object]


@dataclass(frozen=True)
class BundleDraft:
    """All that becomes a bundle; the fields that `Manifest` has too mean the same there.

    Attributes:
        snapshots: Path under `ir/` -> its bytes, or the file or folder to copy.
        merge_params: Store once what several phases of a rank read; else each phase has a file.
    """

    name: str
    digest: str
    target: str
    config: Mapping[str, object]
    checkpoint: Mapping[str, object]
    window: int
    context: int
    vocabulary: int
    modules: tuple[ModuleDraft, ...]
    passes: tuple[Mapping[str, object], ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    snapshots: Mapping[str, bytes | Path] = field(default_factory=dict)
    merge_params: bool = True
    quantization: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ParamsPlan:
    """One parameter file, and which tensor each parameter of its phases is.

    Attributes:
        layout: The file.
        stored: Phase -> parameter name -> tensor name.
    """

    layout: ParamsLayout
    stored: Mapping[Phase, Mapping[str, str]]


def plan_params(draft: BundleDraft) -> dict[str, ParamsPlan]:
    """Every parameter file of the bundle, by its place in it."""
    modules: dict[str, list[ModuleDraft]] = {}
    for module in sorted(draft.modules, key=lambda one: one.rank):
        modules.setdefault(file_of(draft, module), []).append(module)
    return {file: _plan(readers) for file, readers in modules.items()}


def file_of(draft: BundleDraft, module: ModuleDraft) -> str:
    """Where a module's parameters will lie, relative to the bundle."""
    return params_file(module.rank, None if draft.merge_params else module.phase)


def _plan(modules: Sequence[ModuleDraft]) -> ParamsPlan:
    """One tensor an expression, named by the alphabetically first parameter that is free for it."""
    users: dict[str, set[str]] = {}
    weights: dict[str, Weight] = {}
    for module in modules:
        for param in module.params:
            weight = module.weights[param]
            weights[weight.key] = weight
            users.setdefault(weight.key, set()).add(param)
    names: dict[str, str] = {}
    for key in sorted(users, key=lambda one: (min(users[one]), one)):
        names[key] = _free_name(sorted(users[key]), taken=set(names.values()))
    stored: dict[Phase, dict[str, str]] = {
        module.phase: {param: names[module.weights[param].key] for param in module.params}
        for module in modules
    }
    return ParamsPlan(params_layout({names[key]: weights[key] for key in names}), stored)


def _free_name(wanted: Sequence[str], *, taken: set[str]) -> str:
    numbered = (f"{wanted[0]}.{n}" for n in range(2, len(taken) + 3))
    return next(name for name in (*wanted, *numbered) if name not in taken)
