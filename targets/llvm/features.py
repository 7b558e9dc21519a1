"""What the processor can do, by name, and the TVM target that follows from it.

Nothing here looks at the machine except `detect`: a bundle whose features are named is the same,
byte for byte, wherever it is built.
"""

import ctypes
import difflib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.contracts.errors import ConfigError, MachineLacks

_CPUINFO = Path("/proc/cpuinfo")

# Linux's name in /proc/cpuinfo -> LLVM's -mattr name. Only flags that code generation uses; LLVM
# spells VNNI, BF16, FP16 and AMX without the underscore or with a dash.
_LLVM_NAMES = {
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "amx_tile": "amx-tile",
    "avx2": "avx2",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512vl": "avx512vl",
    "avx_vnni": "avxvnni",
    "f16c": "f16c",
    "fma": "fma",
}
_X86_64 = "x86_64"
# What kernels with tiles use: AMX, and vector instructions that every CPU with it has.
_TILES = frozenset(
    {"amx_bf16", "amx_int8", "amx_tile", "avx512bw", "avx512dq", "avx512f", "avx512_vnni"}
)
# https://docs.kernel.org/arch/x86/xstate.html: a process asks for the tiles' state.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


@dataclass(frozen=True)
class CpuFeatures:
    """The instruction sets that code may use.

    Attributes:
        arch: The machine as `platform.machine()` names it, for example `x86_64`.
        flags: Sorted flags under the names of Linux's /proc/cpuinfo (`avx512_vnni`; LLVM's
            `-mattr` says `avx512vnni`, and `llvm_target` translates).
    """

    arch: str
    flags: tuple[str, ...]

    @property
    def lanes(self) -> int:
        """fp32 elements of one vector register."""
        if "avx512f" in self.flags:
            return 16
        return 8 if "avx2" in self.flags else 4

    @property
    def vector_registers(self) -> int:
        """Vector registers that code can name."""
        return 32 if "avx512f" in self.flags else 16


def detect() -> CpuFeatures:
    """Read this machine's features from /proc/cpuinfo: by flags, never by the model's name."""
    arch = platform.machine()
    if arch != _X86_64 or not _CPUINFO.exists():
        return CpuFeatures(arch, ())
    for line in _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return CpuFeatures(arch, tuple(sorted(set(value.split()) & set(_LLVM_NAMES))))
    return CpuFeatures(arch, ())


def from_names(names: Sequence[str]) -> CpuFeatures:
    """Features of an x86-64 machine by flag names (order and repetition do not matter).

    Args:
        names: Flags as /proc/cpuinfo or LLVM's `-mattr` spell them; none of them is plain SSE2.

    Raises:
        ConfigError: A name is unknown; the hint holds the nearest known one.
    """
    by_spelling = {name: name for name in _LLVM_NAMES}
    by_spelling |= {llvm_name: name for name, llvm_name in _LLVM_NAMES.items()}
    unknown = [name for name in names if name not in by_spelling]
    if not unknown:
        return CpuFeatures(_X86_64, tuple(sorted({by_spelling[name] for name in names})))
    near = difflib.get_close_matches(unknown[0], sorted(by_spelling), n=1)
    raise ConfigError(
        f"unknown CPU feature '{unknown[0]}'",
        hint=f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(sorted(_LLVM_NAMES))}",
        code="unknown-cpu-feature",
    )


def missing(required: CpuFeatures, present: CpuFeatures) -> tuple[str, ...]:
    """Flags of `required` that `present` lacks, sorted; after `required.arch` if that differs."""
    flags = tuple(sorted(set(required.flags) - set(present.flags)))
    return flags if required.arch == present.arch else (required.arch, *flags)


def has_tiles(features: CpuFeatures) -> bool:
    """Whether kernels may use AMX."""
    return set(features.flags) >= _TILES


def permit_tiles(features: CpuFeatures) -> None:
    """Ask Linux for the right to use AMX, where code for these features does.

    For the whole process, and for threads that start later: before the first kernel.

    Raises:
        MachineLacks: Linux, or what the process runs under, refuses.
    """
    if not has_tiles(features):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        raise MachineLacks(
            f"this process may not use AMX: {os.strerror(ctypes.get_errno())}",
            hint="build without it: backend.compile.features without amx_tile",
        )


def llvm_target(features: CpuFeatures, *, threads: int) -> dict[str, str | int | list[str]]:
    """The dictionary for `tvm.target.Target`, a function of its arguments alone.

    Args:
        features: What the code may use.
        threads: Worker threads that the bundle is meant for (`num-cores`; the thread pool itself
            obeys the environment variable TVM_NUM_THREADS).
    """
    target: dict[str, str | int | list[str]] = {
        "kind": "llvm",
        "mtriple": f"{features.arch}-unknown-linux-gnu",
        "num-cores": threads,
    }
    if features.arch == _X86_64:
        target["mcpu"] = "x86-64"
        target["mattr"] = [f"+{_LLVM_NAMES[name]}" for name in features.flags]
    return target
