"""`frontend.quantize` and `dataset`: what is rounded, how, and the data that decides it."""

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from compiler.config.section_values import Bound, Count, Section, Text, TextList
from compiler.contracts.quantization import (
    QUANTIZE_TYPES,
    Quantization,
    QuantizeName,
    QuantizeType,
)

DatasetType: TypeAlias = Literal["huggingface", "text", "jsonl"]
DatasetName: TypeAlias = Literal["c4", "ceval", "alpaca"]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        hint = "write cpu, cuda, or cuda:1 for the second"
        raise PydanticCustomError(
            "bad_value", "{text} names no device", {"text": repr(text), "hint": hint}
        )
    return text


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
