"""Programs on onnxruntime: unoptimised, one thread, so that equal arithmetic gives equal bits."""

import zlib
from collections.abc import Mapping

import numpy as np
import onnx

from compiler.contracts.pass_base import Arrays, Pass, PassReport
from compiler.contracts.program import Program
from compiler.contracts.weights import CheckpointRef, value

PAD_TOKEN = 3


def run_program(
    program: Program, inputs: Arrays, checkpoint: CheckpointRef | None = None
) -> dict[str, np.ndarray]:
    """The outputs by name, parameters read from the checkpoint."""
    parameters: dict[str, np.ndarray] = {}
    if checkpoint is not None:
        parameters = {n: value(w, checkpoint.rows) for n, w in program.weights.items()}
    return run_model(program.model(), {**inputs, **parameters})


def random_parameters(program: Program) -> dict[str, np.ndarray]:
    """Its parameters, from a checkpoint of random numbers that depend on a tensor's name alone."""

    def read(name: str, start: int, stop: int) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32(name.encode()))
        shape = program.checkpoint_tensors[name]
        return random.standard_normal(shape, dtype=np.float32)[start:stop]

    return {name: value(weight, read) for name, weight in program.weights.items()}


def run_model(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs of any model by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: _ort_value(array) for name, array in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    results = session.run_with_ort_values(names, feeds)
    return {name: result.numpy() for name, result in zip(names, results, strict=True)}


def _ort_value(array: np.ndarray) -> object:
    from onnxruntime import OrtValue

    array = np.ascontiguousarray(array)
    if array.dtype.name != "bfloat16":
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(
        array.view(np.uint16), onnx.TensorProto.BFLOAT16
    )


def traced_inputs(
    program: Program, *, past: int, valid: int, vocabulary: int, seed: int = 7
) -> dict[str, np.ndarray]:
    """Random tokens, right-padded, after `past` positions of random keys and values."""
    random = np.random.default_rng((seed, past, valid))
    tokens = program.tokens
    ids = np.full((1, tokens), PAD_TOKEN, np.int64)
    ids[0, :valid] = random.integers(0, vocabulary, valid)
    found: dict[str, np.ndarray] = {
        "input_ids": ids,
        "attention_mask": (np.arange(past + tokens) < past + valid).astype(np.int64)[None],
        "position_ids": np.arange(past, past + tokens, dtype=np.int64)[None],
    }
    for spec in program.inputs()[3:]:
        shape = [past if isinstance(axis, str) else axis for axis in spec.shape]
        found[spec.name] = random.standard_normal(shape, dtype=np.float32)
    return found


def valid_part(outputs: Arrays, *, past: int, valid: int) -> dict[str, np.ndarray]:
    """What a traced graph says of real tokens: padding's logits and cache rows are cut off."""
    return {
        name: value[:, :valid] if name == "logits" else value[:, :, : past + valid]
        for name, value in outputs.items()
    }


def adapted(passes: Mapping[Pass, Program], inputs: Arrays) -> dict[str, np.ndarray]:
    """Inputs of the traced graph as the graph after the last of `passes` takes them."""
    current = dict(inputs)
    for one, program in passes.items():
        current = one.adapt_inputs(current, program)
    return current


def run_pass(rewriting: Pass, program: Program) -> PassReport:
    """One pass as the driver runs it, and its result checked as ONNX."""
    report = rewriting.run(program)
    program.prune_parameters()
    onnx.checker.check_model(program.model(), full_check=True)
    return report


def reasons(report: PassReport) -> dict[str, str]:
    """Node -> why it was declined; a pass that rewrote as well fails the test."""
    assert report.rewrites == ()
    return {skip.node: skip.reason for skip in report.skips}
