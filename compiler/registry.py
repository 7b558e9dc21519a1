"""Names -> classes of passes, targets and model families, without importing any of them.

A name comes from a built-in table below, from an installed package's entry points (groups
`graphlower.passes`, `graphlower.targets`, `graphlower.models`), or, for a pass, from a file:
`./my_pass.py:MyPass`. A name that two owners claim is an error that names both.
"""

from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import CheckpointError, ConfigError
from compiler.plugin_loading import Entry, class_in_file, did_you_mean, load_class

if TYPE_CHECKING:
    from compiler.contracts.model_base import ModelFamily
    from compiler.contracts.pass_base import Pass
    from compiler.contracts.target_base import Target

BUILT_IN = "graphlower"

PASSES: Mapping[str, str] = {
    "keep-qkv-bias": "passes.keep_qkv_bias:KeepQKVBias",
    "fold-shapes": "passes.fold_shapes:FoldShapes",
    "fold-constants": "passes.fold_constants:FoldConstants",
    "state-reshapes": "passes.state_reshapes:StateReshapes",
    "widen-angles": "passes.widen_angles:WidenAngles",
    "restore-transpose": "passes.restore_transpose:RestoreTranspose",
    "place-scale": "passes.place_scale:PlaceScale",
    "drop-nan-guard": "passes.drop_nan_guard:DropNaNGuard",
    "merge-equal": "passes.merge_equal:MergeEqual",
    "group-queries": "passes.group_queries:GroupQueries",
    "fold-mask": "passes.fold_mask:FoldMask",
    "plan-kv-cache": "passes.plan_kv_cache:PlanKVCache",
    "insert-strided-slice": "passes.insert_strided_slice:InsertStridedSlice",
    "fuse-qkv": "passes.fuse_qkv:FuseQKV",
    "fuse-gate-up": "passes.fuse_gate_up:FuseGateUp",
    "fuse-rotary": "passes.fuse_rotary:FuseRotary",
    "cast-dtype": "passes.cast_dtype:CastDtype",
    "annotate-int8-qdq": "passes.annotate_int8_qdq:AnnotateInt8QDQ",
    "fuse-attention": "passes.fuse_attention:FuseAttention",
    "fuse-rms-norm": "passes.fuse_rms_norm:FuseRMSNorm",
    "fuse-silu-mul": "passes.fuse_silu_mul:FuseSiluMul",
    "pad-vocabulary": "passes.pad_vocabulary:PadVocabulary",
    "eliminate-dead": "passes.eliminate_dead:EliminateDead",
    "store-kv-cache": "passes.store_kv_cache:StoreKVCache",
    "store-weights": "passes.store_weights:StoreWeights",
    "pack-weights": "passes.pack_weights:PackWeights",
    "round-activations": "passes.round_activations:RoundActivations",
    "fold-batch": "passes.fold_batch:FoldBatch",
    "shard-tensor-parallel": "passes.shard_tensor_parallel:ShardTensorParallel",
}
TARGETS: Mapping[str, str] = {
    "tvm_llvm": "targets.llvm.target:LLVMTarget",
    "torch": "targets.torch.target:TorchTarget",
    "onnxruntime": "targets.onnxruntime.target:OnnxRuntimeTarget",
}
# Names of the declared format that a plugin brings.
DECLARED_TARGETS: tuple[str, ...] = ("tvm_vacc",)
TARGET_ALIASES: Mapping[str, str] = {"llvm": "tvm_llvm", "vacc": "tvm_vacc"}
# By the `model_type` of config.json.
MODELS: Mapping[str, str] = {
    "qwen2": "models.qwen2:Qwen2",
    "qwen3": "models.qwen3:Qwen3",
    "llama": "models.llama:Llama",
}


def passes() -> tuple[str, ...]:
    """Names of all passes, sorted."""
    return tuple(sorted(_table("pass", "graphlower.passes", PASSES)))


def pass_owner(name: str) -> str:
    """The distribution that brings a registered pass.

    Raises:
        ConfigError: There is no such pass.
    """
    return _entry("pass", name, _table("pass", "graphlower.passes", PASSES), where=None).owner


def targets() -> tuple[str, ...]:
    """Names of all targets that have a class, sorted, without the aliases."""
    return tuple(sorted(_targets()))


def target_owner(name: str) -> str:
    """The distribution that brings a target, by name or alias.

    Raises:
        ConfigError: No target has that name, or nothing installed brings it.
    """
    table, resolved = _targets(), resolve_target(name)
    if resolved not in table:
        raise not_installed(name)
    return table[resolved].owner


def target_aliases(name: str) -> tuple[str, ...]:
    """The other names of a target, sorted."""
    return tuple(sorted(alias for alias, meant in TARGET_ALIASES.items() if meant == name))


def declared_targets() -> tuple[str, ...]:
    """Names that `backend.type` knows, sorted: those that are installed and those that may be."""
    return tuple(sorted({*_targets(), *DECLARED_TARGETS}))


def models() -> tuple[str, ...]:
    """The `model_type`s of all model families, sorted."""
    return tuple(sorted(_table("model family", "graphlower.models", MODELS)))


def is_file_pass(name: str) -> bool:
    """Whether a pass is named by its file: `./my_pass.py:MyPass`."""
    return ".py:" in name


def load_pass(name: str, *, base: Path | None = None, where: str | None = None) -> "type[Pass]":
    """The class of a pass.

    Args:
        name: A registered name, or `file.py:Class` with the file relative to `base`.
        base: Folder of the YAML; the current one when None.
        where: Place of the name, for errors.

    Raises:
        ConfigError: There is no such pass, or what the name leads to is not one.
        MachineLacks: Its module needs a package that is not installed.
    """
    from compiler.contracts.pass_base import Pass

    if is_file_pass(name):
        found = class_in_file(name, (base or Path.cwd()), Pass, where=where)
    else:
        entry = _entry("pass", name, _table("pass", "graphlower.passes", PASSES), where=where)
        found = load_class(entry, "pass", Pass, where=where)
    is_decorated = "__dataclass_params__" in vars(found)
    if not is_decorated or not isinstance(getattr(found, "name", None), str):
        raise ConfigError(
            f"pass '{name}' is not a frozen dataclass with a `name`",
            where=where,
            hint="decorate it with @dataclass(frozen=True) and give it `name: ClassVar[str]`",
            code="bad-plugin",
        )
    return found


def resolve_target(name: str, *, where: str | None = None) -> str:
    """The target that a name or an alias means; it need not have a class yet.

    Raises:
        ConfigError: No target has that name.
    """
    known = declared_targets()
    resolved = TARGET_ALIASES.get(name, name)
    if resolved not in known:
        raise _unknown("target", name, (*known, *TARGET_ALIASES), where=where)
    return resolved


def load_target(name: str, *, where: str | None = None) -> "type[Target]":
    """The class of a target, by name or alias.

    Raises:
        ConfigError: No target has that name, or nothing installed brings it.
        MachineLacks: Its module needs a package that is not installed.
    """
    from compiler.contracts.target_base import Target

    table = _targets()
    resolved = resolve_target(name, where=where)
    if resolved not in table:
        raise not_installed(name, where=where)
    found = load_class(table[resolved], "target", Target, where=where)
    lacking = [word for word in ("name", "opens") if not hasattr(found, word)]
    if lacking:
        raise ConfigError(
            f"target '{resolved}' of {table[resolved].owner} has no {' and no '.join(lacking)}",
            where=where,
            hint="see compiler.contracts.target_base.Target",
            code="bad-plugin",
        )
    return found


def not_installed(name: str, *, where: str | None = None) -> ConfigError:
    """The error for a target that the format declares and no installed package brings."""
    return ConfigError(
        f"target '{name}' is not installed",
        where=where,
        hint=f"installed: {', '.join(targets())}; a package brings '{resolve_target(name)}' by an "
        "entry point in the group 'graphlower.targets'",
        code="not-installed",
    )


def load_family(model_type: str, *, where: str | None = None) -> "type[ModelFamily]":
    """The model family of a checkpoint, by the `model_type` of its config.json.

    Raises:
        CheckpointError: No family supports that `model_type`.
        MachineLacks: Its module needs a package that is not installed.
    """
    from compiler.contracts.model_base import ModelFamily

    table = _table("model family", "graphlower.models", MODELS)
    if model_type not in table:
        raise CheckpointError(
            f"model_type '{model_type}' is not supported",
            where=where,
            hint=f"supported: {', '.join(sorted(table))}",
            code="unsupported-model-type",
        )
    return load_class(table[model_type], "model family", ModelFamily, where=where)


def _targets() -> dict[str, Entry]:
    table = _table("target", "graphlower.targets", TARGETS)
    for alias, meant in TARGET_ALIASES.items():
        if alias in table:
            owner = table[alias].owner
            raise _duplicate("target", alias, BUILT_IN, f"{owner} (it is an alias of {meant})")
    return table


def _table(kind: str, group: str, built_in: Mapping[str, str]) -> dict[str, Entry]:
    """Every entry of a kind by name: the built-in ones and those of installed packages."""
    table = {name: Entry(name, path, BUILT_IN) for name, path in built_in.items()}
    for point in metadata.entry_points(group=group):
        owner = point.dist.name if point.dist is not None else "an unknown package"
        entry = Entry(point.name, point.value.replace(" ", ""), owner)
        first = table.setdefault(point.name, entry)
        if first != entry:
            raise _duplicate(kind, point.name, first.owner, owner)
    return table


def _entry(kind: str, name: str, table: Mapping[str, Entry], *, where: str | None) -> Entry:
    if name not in table:
        raise _unknown(kind, name, table, where=where)
    return table[name]


def _unknown(kind: str, name: str, known: Iterable[str], *, where: str | None) -> ConfigError:
    names = sorted(known)
    near = did_you_mean(name, names)
    guess = f"did you mean '{near}'? " if near else ""
    hint = f"{guess}{'P' if guess else 'p'}ossible: {', '.join(names)}"
    return ConfigError(f"no {kind} is named '{name}'", where=where, hint=hint, code="unknown-name")


def _duplicate(kind: str, name: str, first: str, second: str) -> ConfigError:
    return ConfigError(
        f"two packages bring a {kind} named '{name}': {first} and {second}",
        hint="uninstall one of them, or ask its author to rename it",
        code="duplicate-name",
    )
