"""The device profile: what is known, or assumed, of the accelerator.

    backend:
      compile:
        profile: assumed          # a file of targets/vacc/profiles, or a path: ./mine.yaml
        onchip_bytes: 4194304     # any entry of the profile, in place of its own

A file holds every entry, or `base: NAME` and those that differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import CompilerError, ConfigError, raise_all
from compiler.contracts.target_base import OptionValue

if TYPE_CHECKING:
    import yaml

PROFILES = Path(__file__).parent / "profiles"
DEFAULT_PROFILE = "assumed"
DTYPES = ("fp16", "int8")
COMPOSITES = (
    "linear",
    "quantized_linear",
    "rms_norm",
    "rotary",
    "attention",
    "silu_mul",
    "embedding",
    "head",
    "cache_update",
    "angles",
    "add",
    "move",
    "rounded_tokens",
)
_LISTS: Mapping[str, Sequence[str]] = {"dtypes": DTYPES, "composites": COMPOSITES}


@dataclass(frozen=True)
class DeviceProfile:
    """One accelerator.

    Attributes:
        dies: Of one card; a rank takes one.
        memory_bytes: Of one die.
        memory_bandwidth: Bytes a second between a die and its memory.
        onchip_bytes: Buffer of one die that computes read from and write to.
        matrix_tile: Rows and columns of the matrix unit.
        matrix_rate: Multiply-adds a second.
        vector_rate: float32 operations a second.
        alignment: Bytes, of a tensor in memory.
        link_bandwidth: Bytes a second between two dies.
        dtypes: Of weights.
        composites: What it executes; the rest of a graph stays on the host.
    """

    dies: int
    memory_bytes: int
    memory_bandwidth: int
    onchip_bytes: int
    matrix_tile: int
    matrix_rate: int
    vector_rate: int
    alignment: int
    link_bandwidth: int
    dtypes: tuple[str, ...]
    composites: tuple[str, ...]

    @property
    def tile_bytes(self) -> int:
        """What one kernel's buffers may take: the other half is loaded meanwhile."""
        return self.onchip_bytes // 2

    def facts(self) -> dict[str, object]:
        """Every entry, as JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


PROFILE_KEYS = tuple(field.name for field in fields(DeviceProfile))

_Entries = dict[str, tuple[object, str]]


def read_profile(compile_options: Mapping[str, OptionValue], *, place: str = "") -> DeviceProfile:
    """The profile that `backend.compile` names, its own entries replaced by the options.

    Args:
        compile_options: `backend.compile`.
        place: Of `profile` in the YAML, for errors.

    Raises:
        ConfigError: There is no such profile; with file and line for each wrong entry.
    """
    name = compile_options.get("profile", DEFAULT_PROFILE)
    if not isinstance(name, str):
        raise ConfigError(f"profile is {name!r}, expected a name or a file", where=place or None)
    entries = _read(name, place=place)
    for key in PROFILE_KEYS:
        if key in compile_options:
            entries[key] = (compile_options[key], f"backend.compile.{key}")
    errors = _errors(entries, name)
    raise_all(errors)
    values = {key: _typed(value) for key, (value, _) in entries.items()}
    return DeviceProfile(**values)  # type: ignore[arg-type]  # `_errors` checked each of them


def profile_names() -> tuple[str, ...]:
    """The profiles that come with the target."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def _read(name: str, *, place: str, seen: tuple[str, ...] = ()) -> _Entries:
    """Key -> value and where it stands, those of `base:` first."""
    is_file = name.endswith((".yaml", ".yml"))
    file = Path(name) if is_file else PROFILES / f"{name}.yaml"
    known = f"profiles: {', '.join(profile_names())}; or write a file: ./mine.yaml"
    if not file.is_file() or name in seen:
        said = f"profile '{name}' has itself as its base" if name in seen else ""
        raise ConfigError(said or f"there is no profile '{name}'", where=place or None, hint=known)
    entries: _Entries = {}
    own = _parsed(file)
    if "base" in own:
        base, where = own.pop("base")
        entries = _read(str(base), place=where, seen=(*seen, name))
    return {**entries, **own}


def _parsed(file: Path) -> _Entries:
    import yaml

    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"the profile cannot be read: {e}", where=str(file)) from e
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("a profile is a list of `entry: value` lines", where=str(file))
    entries: _Entries = {}
    for key, value in root.value:
        where = _place(file, key)
        if key.value in entries:
            raise ConfigError(f"'{key.value}' stands twice", where=where)
        entries[key.value] = (yaml.safe_load(yaml.serialize(value)), where)
    return entries


def _place(file: Path, node: "yaml.Node") -> str:
    return f"{file}:{node.start_mark.line + 1}"


def _errors(entries: _Entries, name: str) -> list[CompilerError]:
    errors: list[CompilerError] = [
        ConfigError(f"a profile has no entry '{key}'", where=where, hint=_possible(PROFILE_KEYS))
        for key, (_, where) in entries.items()
        if key not in PROFILE_KEYS
    ]
    missing = [key for key in PROFILE_KEYS if key not in entries]
    if missing:
        said = f"profile '{name}' lacks {', '.join(missing)}"
        hint = f"write `base: {DEFAULT_PROFILE}` for what it leaves out"
        errors.append(ConfigError(said, hint=hint))
    for key, (value, where) in entries.items():
        said = _wrong(key, value)
        if said:
            errors.append(ConfigError(f"{key}: {said}", where=where))
    return errors


def _wrong(key: str, value: object) -> str:
    """What is wrong with an entry; empty where nothing is."""
    if key in _LISTS:
        if not isinstance(value, list | tuple):
            return f"{value!r} is no list"
        strange = [str(one) for one in value if one not in _LISTS[key]]
        return f"unknown: {', '.join(strange)}; {_possible(_LISTS[key])}" if strange else ""
    if key not in PROFILE_KEYS:
        return ""
    is_positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return "" if is_positive else f"{value!r} is no positive integer"


def _typed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _possible(names: Sequence[str]) -> str:
    return f"possible: {', '.join(names)}"
