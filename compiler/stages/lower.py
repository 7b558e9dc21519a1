"""Program -> the files of one compiled phase, by the target; runs in a process of its own."""

from pathlib import Path

from compiler.contracts.errors import TargetError, raise_all
from compiler.contracts.program import Program
from compiler.contracts.target_base import Lowered, Target, TargetOptions


def lower_program(
    target_class: type[Target], program: Program, options: TargetOptions, folder: Path
) -> Lowered:
    """Let the target write its files into `folder`, which is made.

    Raises:
        TargetError: Every node that the target cannot lower, with its reason.
    """
    target = target_class()
    raise_all(
        [
            TargetError(
                f"target '{target.name}' cannot lower it: {skip.reason}",
                where=f"{program.phase}: {skip.node}",
            )
            for skip in target.unsupported(program)
        ]
    )
    folder.mkdir(parents=True)
    return target.lower(program, options, folder)
