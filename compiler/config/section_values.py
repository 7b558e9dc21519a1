"""What the sections of the YAML are made of: their base, and kinds of values with their errors."""

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from compiler.contracts.target_base import OptionValue

Dtype: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

# Lengths are padded to this by every target.
LENGTH_MULTIPLE = 16

_FOLDER_NAME = re.compile(r"\w[\w.+-]*")


class Section(BaseModel):
    """A mapping of the YAML: no unknown keys, no silent conversions, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def folder_name(name: str) -> str:
    """Refuse a name that is not safe as the name of a folder."""
    if not _FOLDER_NAME.fullmatch(name) or len(name.encode()) > 200:
        raise PydanticCustomError(
            "bad_value",
            "{text} cannot name a folder",
            {
                "text": repr(name),
                "hint": "begin with a letter or digit, then letters, digits, '_', '.', '+', '-'; "
                "at most 200 bytes",
            },
        )
    return name


def _option(value: object) -> object:
    is_text_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if is_text_list or value is None or isinstance(value, bool | int | float | str):
        return tuple(value) if isinstance(value, list) else value
    raise PydanticCustomError(
        "wrong_type", "expected a scalar or a list of texts, got {kind}", {"kind": _kind(value)}
    )


def _text_list(value: object) -> object:
    """A list as the tuple that a strict section takes."""
    return tuple(value) if isinstance(value, list) else value


def _kind(value: object) -> str:
    return {dict: "a section", list: "a list"}.get(type(value), "a date")


def _length(length: int) -> int:
    if length <= 0 or length % LENGTH_MULTIPLE:
        near = max(LENGTH_MULTIPLE, round(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        raise PydanticCustomError(
            "bad_value",
            "{length} is not a positive multiple of {multiple}",
            {"length": length, "multiple": LENGTH_MULTIPLE, "hint": f"the nearest is {near}"},
        )
    return length


Text: TypeAlias = Annotated[str, Field(min_length=1)]
TextList: TypeAlias = Annotated[tuple[Text, ...], BeforeValidator(_text_list)]
Bound: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Length: TypeAlias = Annotated[int, AfterValidator(_length)]
# Checked by `_option`; a union here would spread over every error's location.
Option: TypeAlias = Annotated[OptionValue, PlainValidator(_option)]
FolderName: TypeAlias = Annotated[str, AfterValidator(folder_name)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
