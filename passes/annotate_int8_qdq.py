"""Chosen linears and embeddings have int8 weights, and where asked, int8 activations.

    MatMul(x, W[in, out])
 -> MatMul(x, Transpose(DequantizeLinear(Wq[out, in] int8, scale[out], axis 0)))   operator: qdq
 -> Vastai::QuantizedLinearPerChannel(x, Wq[out, in] int8, scale[out])             operator: vastai
    Gather(E[V, H], ids) -> Mul(Cast(Gather(Eq, ids)), Unsqueeze(Gather(scale[V], ids), -1))

Symmetric, without zero point: scale = absmax / 127 of the channel (absmax / 7 with `bits: 4`, whose
codes are stored in int8, too), rounded to nearest even (`quantize` and `scale` of
`compiler.contracts.weights`). With `group_size: g` each g inputs of a channel have a scale of their
own, which the accelerator's operator has not. A bias stays in its own Add behind the product. Where
the graph computes in float16 or bfloat16, scales are float32 still and the dequantized weight is
cast. With `activations: int8` each token that a chosen linear takes is rounded to int8 and back by
its own scale (`QuantizedTokens`, one for all linears that read a tensor), in both phases; with
`int8-in-prefill`, in prefill alone. The operators are ONNX functions whose bodies are standard
operators, so that any runtime can take them apart.

`include` and `exclude` are globs over module paths (`model.layers.*.mlp.*`; a star crosses dots).
Included are by default the seven linears of every layer; the head is `lm_head`, the embedding
`model.embed_tokens`. A head and an embedding that are tied become int8 together, as the one tensor
that they are: to include the head is enough, and to leave the embedding out is an error. A product
with a joined weight (`fuse-qkv`, `fuse-gate-up`) stands for all the modules that it joins: a
channel's scale is the same there. A glob that selects nothing is an error, and so is a group size
that does not divide a chosen module's inputs.

It stands after the fusions and `cast-dtype`, and before `store-weights`. Declines a linear that is
quantized already, that is no MatMul(x, W[in, out]) with a weight of its own, or whose joined weight
is included in part.

Numerically each weight moves by at most half of its scale, which no fixed tolerance on logits
describes. What holds is: the new graph gives, to the bit, what the old one gives with the rounded
weights; `adapt_weights` states those independently of the weight table. Rounded activations add at
most half a step of each token's scale, and nothing else: in float64, where they are not rounded,
the new graph is the old one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import ClassVar, Literal

import numpy as np

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport
from compiler.contracts.program import Program, tidy
from compiler.contracts.quantization import SEVEN_LINEARS
from passes._int8_forms import (
    QUANTIZED_LINEAR,
    Codes,
    call_accelerator,
    multiply_by_codes,
    round_tokens,
    store_codes,
    widen_rows,
)
from passes._int8_selection import Choice, Matrix, check_groups, selected, tables_of

Operator = Literal["qdq", "vastai"]
Activations = Literal["float", "int8", "int8-in-prefill"]

# Largest error of logits and caches by rounded activations, as a share of the largest magnitude: it
# was 0.08 at most, at 80 layers. That nothing else differs, float64 says.
_ACTIVATION_ERROR = 0.25


def _round_inputs(program: Program, linears: Sequence[Matrix]) -> None:
    """One rounding for each tensor that linears read."""
    readers: dict[int, list[Matrix]] = {}
    for linear in linears:
        readers.setdefault(id(linear.node.inputs[0]), []).append(linear)
    for group in readers.values():
        round_tokens(program, [linear.node for linear in group], dtype=group[0].rows.dtype)


def annotate_int8_qdq(
    program: Program,
    choice: Choice,
    codes: Codes,
    *,
    operator: Operator,
    has_int8_activations: bool,
) -> PassReport:
    """Quantize every linear and table that is included and not excluded."""
    selection = selected(program, choice)
    check_groups(selection, codes.group)
    if has_int8_activations:
        _round_inputs(program, selection.linears)
    for linear in selection.linears:
        scales = store_codes(program, linear.parameter, linear.rows, codes)
        if operator == "qdq":
            multiply_by_codes(program, linear.node, scales, codes, dtype=linear.rows.dtype)
        else:
            call_accelerator(program, linear.node, scales)
    for table in selection.tables:
        scales = store_codes(program, table.parameter, table.rows, codes)
        widen_rows(program, table.node, scales, codes, dtype=table.rows.dtype)
    tidy(program.graph)
    rewrites = tuple(one.node.name for one in (*selection.linears, *selection.tables))
    return PassReport(rewrites, selection.skips)


def rounded(rows: np.ndarray, codes: Codes) -> np.ndarray:
    """What codes leave of rows [out, in]: their nearest multiples of each scale.

    In the dtype of `rows`; of float64, which holds float32 values, the products are exact.
    """
    wide = rows.astype(np.float32).reshape(-1, codes.group or rows.shape[1])
    scales = np.abs(wide).max(axis=1, keepdims=True) / np.float32(2 ** (codes.bits - 1) - 1)
    scales[scales < np.finfo(np.float32).tiny] = 1
    steps = np.rint(wide / scales).astype(np.result_type(rows.dtype, np.float32))
    return (steps * scales).astype(rows.dtype).reshape(rows.shape)


@dataclass(frozen=True)
class AnnotateInt8QDQ(Pass):
    """W[in, out] -> DequantizeLinear(int8, scale of each output channel) on chosen linears."""

    name: ClassVar = "annotate-int8-qdq"
    after: ClassVar = (
        "widen-angles",
        "place-scale",
        "group-queries",
        "plan-kv-cache",
        "insert-strided-slice",
        "fuse-qkv",
        "fuse-gate-up",
        "pad-vocabulary",
        "cast-dtype",
    )
    include: tuple[str, ...] = SEVEN_LINEARS
    exclude: tuple[str, ...] = ()
    bits: Literal[8, 4] = 8
    group_size: int = 0
    activations: Activations = "float"
    operator: Operator = "qdq"

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise ValueError(f"bits is {self.bits}, expected 8 or 4")
        if self.group_size < 0:
            raise ValueError(f"group_size is {self.group_size}, expected 0 or more")
        if self.group_size and self.operator == "vastai":
            raise ValueError(f"{QUANTIZED_LINEAR.name} has no groups: group_size with vastai is 0")

    @property
    def _choice(self) -> Choice:
        return Choice(self.include, self.exclude)

    def promise(self) -> Contract:
        """Exact over the rounded weights; where activations are rounded, but for that."""
        if self.activations == "float":
            return Contract.exact()
        return Contract.rounds(atol=_ACTIVATION_ERROR)

    def run(self, program: Program) -> PassReport:
        """Quantize what is included; decline what is of another form, with the reason."""
        is_rounded = self.activations == "int8" or (
            self.activations == "int8-in-prefill" and program.phase == "prefill"
        )
        return annotate_int8_qdq(
            program,
            self._choice,
            Codes(self.bits, self.group_size),
            operator=self.operator,
            has_int8_activations=is_rounded,
        )

    def on_probe(self, program: Program) -> "AnnotateInt8QDQ":
        """Groups of the largest size that divides the probe's widths, two to a row at least."""
        selection = selected(program, self._choice)
        inputs = [one.inputs for one in (*selection.linears, *selection.tables)]
        if not any(length % (self.group_size or 1) for length in inputs):
            return self
        sizes = [size for size in range(1, min(inputs)) if gcd(*inputs) % size == 0]
        return replace(self, group_size=max(sizes, default=1))

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """The weights that became int8 are rounded to it; the rest are as they were."""
        codes = Codes(self.bits, self.group_size)
        tables = {one.parameter.name for one in tables_of(program)}
        found = dict(old)
        for name, value in old.items():
            weight = program.weights.get(name)
            if weight is None or weight.dtype != "int8" or value.dtype == np.int8:
                continue
            is_table = name in tables
            rows = rounded(value if is_table else value.T, codes)
            found[name] = rows if is_table else np.ascontiguousarray(rows.T)
        return found
