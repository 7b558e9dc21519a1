"""What values say about each other, and what is not built yet.

The rules read the parsed tree, not the typed sections, so that they speak together with every
other error.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.config.explain import dotted
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.quantization import QUANTIZE_TYPES, QuantizeType
from compiler.registry import not_installed, resolve_target, targets
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
        *_batch(values),
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
    return [] if resolved in targets() else [not_installed(name, where=where)]


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


def _batch(values: _Values) -> list[ConfigError]:
    """Several prompts at once are decoded, and asked for by `b2s`."""
    path, asked = ("frontend", "shape", "batch"), ("frontend", "model_kwargs", "b2s")
    context = ("frontend", "shape", "input_ids", 1, 0)
    batch = _at(values.data, path)
    if not isinstance(batch, int) or batch < 2 or not values.is_sound(path):
        return []
    errors: list[ConfigError] = []
    if _at(values.data, asked) is not True and values.is_sound(asked):
        message = f"{batch} prompts at once are the batch folded into the sequence"
        hint = "write `b2s: true` under frontend.model_kwargs, or leave batch out"
        errors.append(values.error(path, message, hint=hint, code="bad-value"))
    if not values.has(context) and values.is_sound(context[:3]):
        message = f"{batch} prompts are decoded at once, and prefill alone is built"
        hint = "give a context: input_ids [[P], [C]], or leave batch out"
        errors.append(values.error(path, message, hint=hint, code="bad-value"))
    return errors


def _quantization(values: _Values) -> list[ConfigError]:
    """What the quantizer, the dtype and the quantizer's own options say about each other."""
    dtype, quantize = ("backend", "dtype"), ("frontend", "quantize")
    kinds: Mapping[str, QuantizeType] = {**QUANTIZE_TYPES}
    kind = kinds.get(str(_at(values.data, (*quantize, "type"))))
    if not values.is_sound(dtype) or not values.is_sound((*quantize, "type")):
        return []
    is_int8 = _at(values.data, dtype) == "int8"
    errors: list[ConfigError] = []
    if is_int8 and not values.has(quantize):
        hint = "name one in frontend.quantize.type, for example w8a16_gptq"
        errors.append(values.error(dtype, "int8 needs a quantizer", hint=hint, code="bad-value"))
    if kind is not None and kind.weights != "float" and not is_int8:
        spelled = _at(values.data, dtype) or "fp32"
        message = f"int8 weights need backend.dtype int8, which is {spelled}"
        errors.append(values.error(quantize, message, hint="write `dtype: int8`", code="bad-value"))
    compute = ("backend", "compute_dtype")
    if not is_int8 and _at(values.data, compute) not in (None, "fp32"):
        message = "it is for backend.dtype int8; elsewhere arithmetic is float32"
        errors.append(values.error(compute, message, hint="leave it out", code="bad-value"))
    return errors + _quantizer_options(values, kind)


def _quantizer_options(values: _Values, kind: QuantizeType | None) -> list[ConfigError]:
    """Options that the chosen type has no use for."""
    if kind is None:
        return []
    section = ("frontend", "quantize")
    name = _at(values.data, (*section, "type"))
    useless: list[YamlPath] = []
    if kind.weights == "float":
        useless += [(*section, key) for key in ("include", "exclude", "target_loss")]
        useless += [(*section, "calib_args", key) for key in ("bits", "group_size")]
    if kind.weights != "gptq":
        # `true_sequential: false` stands in files of every type, and asks for nothing.
        gptq = ["act_order", "damping"]
        if _at(values.data, (*section, "calib_args", "true_sequential")) is True:
            gptq.append("true_sequential")
        useless += [(*section, "calib_args", key) for key in gptq]
    if not kind.has_int8_activations:
        useless.append((*section, "calib_args", "decode_activations"))
    errors = [
        values.error(path, f"{name} has no use for it", hint="leave it out", code="bad-value")
        for path in useless
        if values.has(path) and values.is_sound(path)
    ]
    bits = (*section, "calib_args", "bits")
    if kind.has_int8_activations and _at(values.data, bits) == 4 and values.is_sound(bits):
        hint = "write `bits: 8`, or a w8a16 type"
        errors.append(values.error(bits, f"{name} takes 8 bits", hint=hint, code="bad-value"))
    return errors
