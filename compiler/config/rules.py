"""What values say about each other, and what is not built yet.

The rules read the parsed tree, not the typed sections, so that they speak together with every
other error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.config.explain import dotted
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.registry import not_built, resolve_target, targets
from compiler.yaml_source import Source, YamlPath, YamlValue


@dataclass(frozen=True)
class Limit:
    """A key of which only some values are built. Delete the line when all of them are.

    Attributes:
        key: Dotted path.
        supported: Values that are built.
        hint: What to write.
    """

    key: str
    supported: tuple[YamlValue, ...]
    hint: str


NOT_SUPPORTED_YET: tuple[Limit, ...] = (
    Limit("frontend.type", ("huggingface", "onnx"), "supported: huggingface, onnx"),
    Limit("frontend.quantize", (None,), "leave the section out"),
    Limit("frontend.model_kwargs.tp", (1,), "supported: 1"),
    Limit("frontend.model_kwargs.b2s", (False,), "supported: false"),
    Limit("frontend.model_kwargs.model_arch", (None,), "leave it out"),
    Limit("frontend.model_kwargs.align_qkv", (False,), "supported: false"),
    Limit("backend.dtype", ("fp32", "bf16", "fp16"), "supported: fp32, bf16, fp16"),
    Limit("backend.compute_dtype", ("fp32",), "supported: fp32"),
    Limit("backend.merge_params", (True,), "supported: true"),
    Limit("workspace.work_dir", (None,), "leave it out"),
    Limit("workspace.env_recheck", (None,), "leave it out"),
    Limit("workspace.pyenv", (None,), "leave it out"),
)


def rule_errors(
    data: Mapping[str, YamlValue], source: Source, faulty: set[YamlPath]
) -> list[CompilerError]:
    """Every rule that the tree breaks; values at, above and below `faulty` paths are left alone."""
    values = _Values(data, source, frozenset(faulty))
    return [
        *_not_supported(values),
        *_target(values),
        *_lengths(values),
        *_quantization(values),
    ]


@dataclass(frozen=True)
class _Values:
    data: Mapping[str, YamlValue]
    source: Source
    faulty: frozenset[YamlPath]

    def has(self, path: YamlPath) -> bool:
        return _at(self.data, path) is not None

    def is_sound(self, path: YamlPath) -> bool:
        return not any(
            path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.faulty if bad
        )

    def error(self, path: YamlPath, message: str, *, hint: str, code: str) -> ConfigError:
        where = self.source.place(path)
        return ConfigError(f"{dotted(path)}: {message}", where=where, hint=hint, code=code)


def _at(data: Mapping[str, YamlValue], path: YamlPath) -> YamlValue:
    """The value at a path; None where there is none."""
    value: YamlValue = dict(data)
    for part in path:
        if isinstance(value, dict):
            value = value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _not_supported(values: _Values) -> list[ConfigError]:
    errors: list[ConfigError] = []
    for limit in NOT_SUPPORTED_YET:
        path = tuple(limit.key.split("."))
        value = _at(values.data, path)
        if value is None or value in limit.supported or not values.is_sound(path):
            continue
        shown = "this section" if isinstance(value, dict) else _spelled(value)
        message = f"{shown} is not supported yet"
        errors.append(values.error(path, message, hint=limit.hint, code="not-supported-yet"))
    return errors


def _spelled(value: YamlValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _target(values: _Values) -> list[CompilerError]:
    path = ("backend", "type")
    name = _at(values.data, path)
    if not isinstance(name, str) or not values.is_sound(path):
        return []
    where = values.source.place(path)
    try:
        resolved = resolve_target(name, where=where)
    except ConfigError as error:
        return [error]
    return [] if resolved in targets() else [not_built(name, where=where)]


def _lengths(values: _Values) -> list[ConfigError]:
    path = ("frontend", "shape", "input_ids")
    window, context = _at(values.data, (*path, 0, 0)), _at(values.data, (*path, 1, 0))
    if not values.is_sound(path) or not isinstance(window, int) or not isinstance(context, int):
        return []
    if context >= window:
        return []
    message = f"the context of {context} is shorter than the prefill window of {window}"
    hint = f"write [[{context}], [{window}]], or a context of at least {window}"
    return [values.error((*path, 1, 0), message, hint=hint, code="bad-value")]


def _quantization(values: _Values) -> list[ConfigError]:
    dtype, quantize = ("backend", "dtype"), ("frontend", "quantize")
    if not values.is_sound(dtype) or not values.is_sound(quantize):
        return []
    is_int8 = _at(values.data, dtype) == "int8"
    if is_int8 and not values.has(quantize):
        message = "int8 needs a quantizer"
        hint = "name one in frontend.quantize.type, for example w8a16_gptq"
        return [values.error(dtype, message, hint=hint, code="bad-value")]
    if values.has(quantize) and not is_int8:
        message = (
            f"a quantizer needs backend.dtype int8, which is {_at(values.data, dtype) or 'fp32'}"
        )
        return [values.error(quantize, message, hint="write `dtype: int8`", code="bad-value")]
    return []
