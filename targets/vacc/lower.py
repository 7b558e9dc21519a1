"""Program -> the files of one phase; imported only where something is built.

module.so               the host's part
vacc_prefill_0.tiles    a tile program for each partition
vacc_prefill_0.bin      the same as a driver compiled it, where it compiles
estimate.json           what the cost model says of a call
coverage.json           what runs where, and why
"""

import json
from collections.abc import Mapping
from pathlib import Path

from compiler.contracts.errors import TargetError, raise_all
from compiler.contracts.program import Program
from compiler.relax import import_tvm
from targets.vacc.device import DeviceProfile
from targets.vacc.driver import VaccDriver

LIBRARY = "module.so"


def write_phase(
    program: Program,
    folder: Path,
    *,
    profile: DeviceProfile,
    driver: VaccDriver,
    is_strict: bool,
) -> dict[str, object]:
    """Write the files; equal programs and profiles give equal bytes.

    Returns:
        What the runner must know, as JSON.

    Raises:
        TargetError: Something falls back to the host, and `is_strict`; each with its reason.
        MachineLacks: TVM or a linker is missing.
    """
    import_tvm()
    from targets.vacc.cost_model import call_lengths, estimate
    from targets.vacc.coverage import coverage
    from targets.vacc.host import write_library
    from targets.vacc.partition import cache_dtypes, partition
    from targets.vacc.tile_text import tile_text

    parts = partition(program, profile)
    lengths = call_lengths(program.phase, program.tokens, program.context)
    covered = coverage(parts, lengths)
    if is_strict:
        raise_all(
            [
                TargetError(
                    f"{node.operator} {node.result} falls back to the host: {node.reason}",
                    where=program.phase,
                    hint="leave out backend.compile.strict, or mend what it names",
                    code="fallback",
                )
                for node in covered.fallbacks
            ]
        )
    programs = [part.program for part in parts.partitions]
    _write_json(folder / "coverage.json", covered.facts())
    _write_json(folder / "estimate.json", estimate(programs, profile, lengths))
    for tiles in programs:
        text = tile_text(tiles)
        (folder / f"{tiles.name}.tiles").write_text(text, encoding="utf-8", newline="\n")
        compiled = driver.compile(text)
        if compiled != text.encode():
            (folder / f"{tiles.name}.bin").write_bytes(compiled)
    write_library(parts.module, folder / LIBRARY)
    return {
        "library": LIBRARY,
        "driver": driver.name,
        "caches": cache_dtypes(program, profile),
        "partitions": [
            {
                "name": part.program.name,
                "results": list(part.results),
                "workspace_bytes": part.program.workspace_bytes,
            }
            for part in parts.partitions
        ],
        "coverage": covered.facts(),
    }


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
