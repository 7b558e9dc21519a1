"""`passes:`, an ordered list of names or of one-key mappings `name: {option: value}`.

    passes: [fold-mask, insert-strided-slice: {position: last}]

A pass's options are the fields of its dataclass; each is checked against its field's type.
"""

import dataclasses
import hashlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import TypeAdapter, ValidationError

from compiler import registry
from compiler.config.explain import config_errors, dotted, kind_of
from compiler.config.quantize_section import Quantize
from compiler.contracts.errors import CompilerError, ConfigError, raise_all
from compiler.contracts.quantization import SEVEN_LINEARS
from compiler.yaml_source import Source, YamlPath, YamlValue

if TYPE_CHECKING:
    from compiler.contracts.pass_base import Pass

SLICE_PASS = "insert-strided-slice"
QUANTIZE_PASS = "annotate-int8-qdq"
CACHE_PASS = "store-kv-cache"
SHARD_PASS = "shard-tensor-parallel"
FOLD_PASS = "fold-batch"
# Of a traced model.
DEFAULT_PASSES: tuple[str, ...] = (
    "keep-qkv-bias",
    "fold-constants",
    "fold-mask",
    "plan-kv-cache",
    SLICE_PASS,
)
# Of an ONNX file: what an exporter spells in its own way is brought to a traced model's form first.
EXPORTED_PASSES: tuple[str, ...] = (
    "keep-qkv-bias",
    "fold-shapes",
    "fold-constants",
    "state-reshapes",
    "widen-angles",
    "restore-transpose",
    "place-scale",
    "drop-nan-guard",
    "merge-equal",
    "group-queries",
    "fold-mask",
    "plan-kv-cache",
    SLICE_PASS,
)

PassOption: TypeAlias = (
    bool | int | float | str | tuple["PassOption", ...] | Mapping[str, "PassOption"] | None
)
_FORM = "write its name, or `name: {option: value}`"


@dataclass(frozen=True)
class PassSpec:
    """One entry of the list.

    Attributes:
        name: Registered name, or `file.py:Class` as written.
        options: Field -> value, as far as the YAML sets them.
        place: `file:line:column` of the entry.
        source_sha256: Digest of the file, for a pass that is named by its file.
    """

    name: str
    options: Mapping[str, PassOption] = field(default_factory=dict)
    place: str = ""
    source_sha256: str | None = None


def default_passes(*, is_exported: bool, insert_slice: bool, place: str) -> tuple[PassSpec, ...]:
    """The list that stands where the YAML has none."""
    names = EXPORTED_PASSES if is_exported else DEFAULT_PASSES
    return tuple(
        PassSpec(name, place=place) for name in names if insert_slice or name != SLICE_PASS
    )


def quantize_passes(quantize: Quantize | None, *, place: str) -> tuple[PassSpec, ...]:
    """What `frontend.quantize` adds to the list."""
    if quantize is None:
        return ()
    kind, arguments = quantize.kind, quantize.calib_args
    specs: list[PassSpec] = []
    if kind.weights != "float":
        options: dict[str, PassOption] = {
            "include": (*SEVEN_LINEARS, *quantize.include),
            "exclude": quantize.exclude,
            "bits": arguments.bits,
            "group_size": arguments.group_size,
        }
        if kind.has_int8_activations:
            in_decode = arguments.decode_activations == "int8"
            options["activations"] = "int8" if in_decode else "int8-in-prefill"
        specs.append(PassSpec(QUANTIZE_PASS, options, place))
    if kind.has_int8_cache:
        specs.append(PassSpec(CACHE_PASS, {"dtype": "int8"}, place))
    return tuple(specs)


def read_passes(
    data: YamlValue, source: Source, *, path: YamlPath, folder: Path
) -> tuple[tuple[PassSpec, ...] | None, list[CompilerError]]:
    """The YAML's list, with every option checked against its pass; None when there is no list.

    Args:
        data: What stands at `path`.
        source: The file, for places.
        path: `passes`, or `passes.order`.
        folder: Folder of the YAML, where the paths of passes in files start.
    """
    if data is None:
        return None, []
    if not isinstance(data, list):
        message = f"{dotted(path)}: expected a list, got {kind_of(data, source.spelling(path))}"
        where = source.place(path)
        return (), [
            ConfigError(message, where=where, hint="write `- name` lines", code="wrong-type")
        ]
    specs: list[PassSpec] = []
    errors: list[CompilerError] = []
    for index, entry in enumerate(data):
        spec, found = read_entry(entry, source, (*path, index), folder=folder)
        errors += found
        specs += [spec] if spec is not None else []
    return tuple(specs), errors


def build_passes(specs: Sequence[PassSpec], *, folder: Path) -> "tuple[Pass, ...]":
    """The passes of a list, in order.

    Args:
        specs: `BuildConfig.pass_list`.
        folder: What a pass's file is relative to: the YAML's folder.

    Raises:
        CompilerError: A pass cannot be loaded, or refuses its options.
    """
    errors: list[CompilerError] = []
    built: list[Pass] = []
    for spec in specs:
        try:
            built.append(_build(spec, folder=folder))
        except CompilerError as error:
            errors.append(error)
    raise_all(errors)
    return tuple(built)


def read_entry(
    entry: YamlValue, source: Source, path: YamlPath, *, folder: Path
) -> tuple[PassSpec | None, list[CompilerError]]:
    """One pass, by its name or as `name: {option: value}`."""
    name, options = _split(entry)
    where = source.place(path)
    if name is None:
        message = f"{dotted(path)}: expected a pass, got {kind_of(entry, source.spelling(path))}"
        return None, [ConfigError(message, where=where, hint=_FORM, code="wrong-type")]
    path = (*path, name) if isinstance(entry, dict) else path
    return read_options(name, options, source, path, folder=folder)


def read_options(
    name: str,
    options: YamlValue,
    source: Source,
    path: YamlPath,
    *,
    folder: Path,
    is_whole: bool = True,
) -> tuple[PassSpec | None, list[CompilerError]]:
    """A pass and the section of its options, at `path`.

    Args:
        name: Registered name, or `file.py:Class`.
        options: What stands there; nothing is as good as no option.
        source: The file, for places.
        path: Where it stands.
        folder: Folder of the YAML.
        is_whole: Whether these are all options, so that none that is required may be missing.
    """
    where = source.key_place(path)
    options = {} if options is None else options
    if not isinstance(options, dict):
        message = f"the options of '{name}': expected a section, got {kind_of(options)}"
        place = source.place(path)
        return None, [ConfigError(message, where=place, hint=_FORM, code="wrong-type")]
    try:
        kind = registry.load_pass(name, base=folder, where=where)
        errors = _option_errors(kind, name, options, source=source, path=path, is_whole=is_whole)
        spec = PassSpec(name, _frozen_options(options), where, _file_digest(name, folder))
        if not errors and is_whole:
            _build(spec, folder=folder)
    except CompilerError as error:
        return None, [error]
    return spec, errors


def _split(entry: YamlValue) -> tuple[str | None, YamlValue]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        return name, {} if options is None else options
    return None, None


def _option_errors(
    kind: "type[Pass]",
    name: str,
    options: Mapping[str, YamlValue],
    *,
    source: Source,
    path: YamlPath,
    is_whole: bool,
) -> list[CompilerError]:
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    types = _option_types(kind, name, where=source.key_place(path))
    errors: list[CompilerError] = []
    for option, value in options.items():
        where = source.key_place((*path, option))
        if option not in fields:
            errors.append(_unknown_option(name, option, tuple(fields), where=where))
            continue
        try:
            TypeAdapter(types[option]).validate_python(_frozen(value), strict=True)
        except ValidationError as error:
            errors += config_errors(error, source, (*path, option))
    required = (f.name for f in fields.values() if _is_required(f))
    for option in (option for option in required if is_whole and option not in options):
        message = f"pass '{name}' needs the option '{option}'"
        hint = f"write `{name}: {{{option}: ...}}`"
        errors.append(
            ConfigError(message, where=source.key_place(path), hint=hint, code="missing-key")
        )
    return errors


def _option_types(kind: "type[Pass]", name: str, *, where: str) -> "dict[str, type[object]]":
    try:
        return typing.get_type_hints(kind)
    except NameError as e:
        message = f"pass '{name}' has a field of an unknown type: {e}"
        hint = "import the types of its fields at the top of its module"
        raise ConfigError(message, where=where, hint=hint, code="bad-plugin") from e


def _is_required(option: "dataclasses.Field[object]") -> bool:
    missing = dataclasses.MISSING
    return option.default is missing and option.default_factory is missing


def _unknown_option(name: str, option: str, known: tuple[str, ...], *, where: str) -> ConfigError:
    near = registry.did_you_mean(option, known)
    hint = f"possible: {', '.join(known)}" if known else "it has no options"
    hint = f"did you mean '{near}'?" if near else hint
    message = f"pass '{name}' has no option '{option}'"
    return ConfigError(message, where=where, hint=hint, code="unknown-key")


def _build(spec: PassSpec, *, folder: Path) -> "Pass":
    kind = registry.load_pass(spec.name, base=folder, where=spec.place)
    try:
        return kind(**spec.options)
    except (TypeError, ValueError) as e:
        message = f"pass '{spec.name}' refuses its options: {e}"
        raise ConfigError(message, where=spec.place, code="bad-value") from e


def _frozen_options(options: Mapping[str, YamlValue]) -> dict[str, PassOption]:
    return {option: _frozen(value) for option, value in options.items()}


def _frozen(value: YamlValue) -> PassOption:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat()


def _file_digest(name: str, folder: Path) -> str | None:
    if not registry.is_file_pass(name):
        return None
    file = folder / Path(name.rpartition(":")[0]).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest()
