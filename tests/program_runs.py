"""Programs on onnxruntime, as the build's own checks run them."""

import zlib
from collections.abc import Mapping

import numpy as np
import onnx

from compiler.contracts.pass_base import Arrays, Pass, PassReport
from compiler.contracts.program import Program
from compiler.contracts.weight_values import value
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.feeds import Lengths, program_feeds
from compiler.numerics.reference_run import run_model


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


def traced_inputs(
    program: Program, *, past: int, valid: int, vocabulary: int, seed: int = 7
) -> dict[str, np.ndarray]:
    """Random tokens, right-padded, after `past` positions of random keys and values."""
    return program_feeds(program, Lengths(past, valid), vocabulary=vocabulary, seed=seed)


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
