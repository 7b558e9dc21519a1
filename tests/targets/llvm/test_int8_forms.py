"""Graphs with int8 weights, of the forms that passes write: onnxruntime's numbers and numpy's, by
the kernels that take int8 as it is, and no float copy of a weight anywhere.
"""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

from collections.abc import Mapping

import numpy as np
import pytest
import tvm
from float_copies import float_copies
from int8_activations import QUANTIZED_TOKENS
from program_runs import run_program
from program_text import program_from_text
from relax_calls import kernel_calls, operators
from relax_runs import run_main
from tvm import relax

from compiler.contracts.program import FUSED_DOMAIN, Program
from compiler.relax import relax_from_program
from targets.llvm.features import detect, llvm_target
from targets.llvm.fused import fused_converters
from targets.llvm.linears import lower_linears
from targets.llvm.pipeline import pipeline
from targets.llvm.row_kernels import RowKernels

OUTPUTS, INPUTS, GROUP, VOCABULARY = 72, 96, 16, 500
GROUPS = INPUTS // GROUP
CHANNELS = """
    wide = DequantizeLinear <axis = 0> (w, s)
    turned = Transpose <perm = [1, 0]> (wide)
    y = MatMul (given, turned)
"""
GROUPED = """
    cut = Reshape (w, fine)
    listed = Reshape (s, flat)
    widened = DequantizeLinear <axis = 0> (cut, listed)
    wide = Reshape (widened, whole)
    turned = Transpose <perm = [1, 0]> (wide)
    y = MatMul (given, turned)
"""
# form -> (how x is given, the product)
FORMS: Mapping[str, tuple[str, str]] = {
    "channels": ("given = Identity (x)", CHANNELS),
    "groups": ("given = Identity (x)", GROUPED),
    "int8 activations": (f"given = {FUSED_DOMAIN}.QuantizedTokens (x)", CHANNELS),
    "int8 activations, groups": (f"given = {FUSED_DOMAIN}.QuantizedTokens (x)", GROUPED),
}
KERNELS = {
    "channels": ["linear"],
    "groups": ["linear"],
    "int8 activations": ["integer_linear", "quantize_tokens"],
    "int8 activations, groups": ["linear", "quantize_tokens"],
}
# A table that is looked up, and the head as well.
TIED = f"""tied (int64[1, 4] ids, int8[{VOCABULARY}, {INPUTS}] w, float[{VOCABULARY}] s)
    => (float[1, 4, {INPUTS}] y, float[1, 4, {VOCABULARY}] logits)
    <int64[1] last = {{-1}}> {{
    rows = Gather <axis = 0> (w, ids)
    wide = Cast <to = 1> (rows)
    scales = Gather <axis = 0> (s, ids)
    column = Unsqueeze (scales, last)
    y = Mul (wide, column)
    all = DequantizeLinear <axis = 0> (w, s)
    turned = Transpose <perm = [1, 0]> (all)
    logits = MatMul (y, turned)
}}"""


def linear_program(form: str, tokens: int, *, has_bias: bool = True) -> Program:
    given, product = FORMS[form]
    scales = f"{OUTPUTS}, {GROUPS}" if "groups" in form else f"{OUTPUTS}"
    result = f"float[1, {tokens}, {OUTPUTS}]"
    body = f"{given}\n{product}"
    if has_bias:
        body = body.replace("y = MatMul", "raw = MatMul") + "    y = Add (raw, b)\n"
    program = program_from_text(
        f"""linear (float[1, {tokens}, {INPUTS}] x, int8[{OUTPUTS}, {INPUTS}] w,
            float[{scales}] s, float[{OUTPUTS}] b) => ({result} y)
        <int64[2] fine = {{{OUTPUTS * GROUPS}, {GROUP}}}, int64[1] flat = {{{OUTPUTS * GROUPS}}},
         int64[2] whole = {{{OUTPUTS}, {INPUTS}}}> {{ {body} }}"""
    )
    program.functions["QuantizedTokens"] = QUANTIZED_TOKENS
    return program


def drawn(program: Program, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values for all inputs, in order."""
    made: dict[str, np.ndarray] = {}
    for spec in program.inputs():
        shape = tuple(int(axis) for axis in spec.shape)
        match spec.dtype:
            case "int8":
                made[spec.name] = rng.integers(-127, 128, shape, dtype=np.int8)
            case "int64":
                made[spec.name] = rng.integers(0, VOCABULARY, shape)
            case _ if spec.name == "s":
                made[spec.name] = rng.uniform(0.5, 2, shape).astype(np.float32) / 127
            case _:
                made[spec.name] = rng.standard_normal(shape, dtype=np.float32)
    return made


def wide_weight(given: Mapping[str, np.ndarray]) -> np.ndarray:
    codes, scales = given["w"].astype(np.float64), given["s"].astype(np.float64)
    scales = scales.reshape(len(codes), -1)
    return codes * scales.repeat(codes.shape[1] // scales.shape[1], axis=1)


def by_numpy(form: str, given: Mapping[str, np.ndarray], *, has_bias: bool) -> np.ndarray:
    x = given["x"][0]
    if "activations" in form:
        scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        x = np.rint(x / scales) * scales.astype(np.float64)
    return (x.astype(np.float64) @ wide_weight(given).T + (given["b"] if has_bias else 0))[None]


def relax_module(program: Program) -> tvm.IRModule:
    return relax_from_program(program, fused=fused_converters(RowKernels(detect())))


def executable(module: tvm.IRModule) -> tvm.runtime.Executable:
    features = detect()
    return tvm.compile(
        module,
        target=tvm.target.Target(llvm_target(features, threads=2)),
        relax_pipeline=pipeline(RowKernels(features), threads=2),
    )


def lowered(module: tvm.IRModule, *, without: str = "") -> tvm.IRModule:
    """After the whole pipeline, or all of it but one phase."""
    features = detect()
    phases = pipeline(RowKernels(features), threads=2).passes  # pyright: ignore[reportAttributeAccessIssue]
    kept = [phase for phase in phases if phase.info.name != without]
    assert len(kept) == len(phases) - bool(without)
    with tvm.target.Target(llvm_target(features, threads=2)):
        return tvm.transform.Sequential(kept)(module)


def assert_close(found: np.ndarray, wanted: np.ndarray, *, message: str) -> None:
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=message
    )


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize("form", FORMS)
def test_a_linear_equals_onnxruntime_and_numpy(form: str, tokens: int, has_bias: bool):
    program = linear_program(form, tokens, has_bias=has_bias)
    given = drawn(program, np.random.default_rng(tokens))
    wanted = run_program(program, given)["y"]
    (found,) = run_main(executable(relax_module(program)), list(given.values()))
    assert_close(found, wanted, message="onnxruntime")
    assert_close(found, by_numpy(form, given, has_bias=has_bias), message="numpy")


@pytest.mark.parametrize("form", FORMS)
def test_a_linear_is_taken_by_its_kernel(form: str):
    module = lower_linears(relax_module(linear_program(form, 3)), RowKernels(detect()))
    module = relax.transform.DeadCodeElimination()(module)
    assert sorted(call.kind for call in kernel_calls(module)) == KERNELS[form]
    rest = {"dequantize"} if form == "int8 activations, groups" else set()
    assert operators(module) == {"call_tir", "reshape"} | rest
    product = kernel_calls(module)[-1]
    given = {parameter.name: parameter for parameter in module["main"].params}
    assert [one.same_as(given[n]) for n, one in zip("wsb", product.arguments[-3:], strict=True)]


def test_linears_share_the_codes_of_one_value():
    program = program_from_text(
        f"""shared (float[1, 3, {INPUTS}] x, int8[{OUTPUTS}, {INPUTS}] w, float[{OUTPUTS}] s,
                int8[{OUTPUTS}, {INPUTS}] v)
            => (float[1, 3, {OUTPUTS}] one, float[1, 3, {OUTPUTS}] two, float[1, 3, {OUTPUTS}] far)
        {{
            given = {FUSED_DOMAIN}.QuantizedTokens (x)
            wide = DequantizeLinear <axis = 0> (w, s)
            turned = Transpose <perm = [1, 0]> (wide)
            one = MatMul (given, turned)
            other = DequantizeLinear <axis = 0> (v, s)
            again = Transpose <perm = [1, 0]> (other)
            two = MatMul (given, again)
            negative = Neg (given)
            far = MatMul (negative, turned)
        }}"""
    )
    program.functions["QuantizedTokens"] = QUANTIZED_TOKENS
    module = lower_linears(relax_module(program), RowKernels(detect()))
    calls = kernel_calls(relax.transform.DeadCodeElimination()(module))
    # What is computed from the codes, and no codes itself, multiplies in floats.
    kinds = sorted(call.kind for call in calls)
    assert kinds == ["integer_linear", "integer_linear", "linear", "quantize_tokens"]
    given = drawn(program, np.random.default_rng(1))
    wanted = run_program(program, given)
    found = run_main(executable(relax_module(program)), list(given.values()))
    for array, spec in zip(found, program.outputs(), strict=True):
        assert_close(array, wanted[spec.name], message=spec.name)


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("form", FORMS)
def test_no_float_copy_of_a_weight_is_kept(form: str, tokens: int):
    module = relax_module(linear_program(form, tokens))
    after = lowered(module)
    assert [str(p.ty.dtype) for p in after["main"].params][:2] == ["float32", "int8"]
    assert float_copies(after, OUTPUTS * INPUTS) == []
    # By TVM's own operators there is one: the test can see it.
    copies = float_copies(lowered(module, without="LowerLinears"), OUTPUTS * INPUTS)
    assert "main" in {one.function for one in copies}


def test_a_tied_table_stays_int8():
    program = program_from_text(TIED)
    given = drawn(program, np.random.default_rng(5))
    module = relax_module(program)
    rows, logits = run_main(executable(module), list(given.values()))
    wanted = run_program(program, given)
    np.testing.assert_array_equal(rows, wanted["y"])
    assert_close(logits, wanted["logits"], message="onnxruntime")
    table = wide_weight(given)
    assert_close(logits, table[given["ids"]] @ table.T, message="numpy")
    after = lowered(module)
    assert [str(p.ty.dtype) for p in after["main"].params] == ["int64", "int8", "float32"]
    assert float_copies(after, VOCABULARY * INPUTS) == []
    assert float_copies(lowered(module, without="LowerLinears"), VOCABULARY * INPUTS)
