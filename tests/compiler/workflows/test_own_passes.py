"""Passes that the build runs itself may not be listed, and are recorded behind those that are."""

from pathlib import Path

from program_text import program_from_text

from compiler.config import load_config
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import ProgramSet
from compiler.stages.rewrite import Rewritten
from compiler.workflows.own_passes import listed_errors, recorded

YAML = """\
frontend: {checkpoint: checkpoint, type: huggingface, shape: {input_ids: [[16], [32]]}}
backend: {type: llvm}
passes:
  add:
    - fold-mask
    - fold-batch: {batch: 2}
"""
TEXT = """
test (float[1, 4] x) => (float[1, 4] y)
{
    y = Identity (x)
}
"""


def test_each_place_where_it_is_listed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    config = load_config(path)
    (error,) = listed_errors(
        config, "fold-batch", said="behind all others", hint="leave it out", code="fold-pass"
    )
    assert error.message == "'fold-batch' is run by the build, behind all others"
    assert error.where is not None
    assert error.where.endswith("model.yaml:6:7")
    assert (error.hint, error.code) == ("leave it out", "fold-pass")
    assert listed_errors(config, "shard-tensor-parallel", said="", hint="", code="") == []


def test_its_snapshots_are_numbered_behind_the_last() -> None:
    program = program_from_text(TEXT)
    first = PassRecord("fold-mask", "prefill", 1, ())
    done = Rewritten(
        ProgramSet({"prefill": program}),
        (first,),
        {"prefill/00-trace.onnx": b"0", "prefill/11-fold-mask.onnx": b"11"},
        {},
    )
    own = PassRecord("fold-batch", "prefill", 2, ())
    found = recorded(done, "fold-batch", [program], [own])
    assert found.records == (first, own)
    assert sorted(found.snapshots) == [
        "prefill/00-trace.onnx",
        "prefill/11-fold-mask.onnx",
        "prefill/12-fold-batch.onnx",
    ]
    model = program.model().SerializeToString(deterministic=True)
    assert found.snapshots["prefill/12-fold-batch.onnx"] == model
