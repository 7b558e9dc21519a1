"""An evaluation on disk, as JSON; what is no number is null there."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from compiler.atomic_file import partial_file
from compiler.contracts.evaluation import Evaluation

_EVALUATION = TypeAdapter(Evaluation)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write it whole, or leave what is there.

    Raises:
        RunError: The place cannot be written.
    """
    with partial_file(path) as partial:
        partial.write_bytes(_EVALUATION.dump_json(evaluation, indent=2) + b"\n")


def read_evaluation(path: Path) -> Evaluation | None:
    """What was written there; None where that is missing, or holds what is no evaluation."""
    try:
        return _EVALUATION.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
