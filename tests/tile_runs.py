"""One kernel as a program of its own, emulated on arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from targets.vacc.buffers import DTYPES
from targets.vacc.device import DeviceProfile, read_profile
from targets.vacc.emulator import EmulatedPartition
from targets.vacc.tile_program import Argument, Kernel, Role, Run, TileProgram
from targets.vacc.tile_text import tile_text

PROFILE = read_profile({})


def small_chip(onchip_bytes: int) -> DeviceProfile:
    """The assumed device with another chip."""
    return replace(PROFILE, onchip_bytes=onchip_bytes)


def program_of(kernel: Kernel, *, onchip_bytes: int, states: Sequence[str] = ()) -> TileProgram:
    """Its inputs are arguments; results are new, but for `states`, which are written in place."""
    given = [Argument("arg", tensor) for tensor in kernel.inputs]
    role: Role = "state"
    given += [Argument(role, tensor) for tensor in kernel.outputs if tensor.name in states]
    names = tuple(tensor.name for tensor in kernel.outputs)
    return TileProgram(
        name="alone",
        onchip_bytes=onchip_bytes,
        kernels=(kernel,),
        arguments=tuple(given),
        tensors=tuple(tensor for tensor in kernel.outputs if tensor.name not in states),
        steps=(Run(kernel.name, "module", tuple(t.name for t in kernel.inputs), names),),
        results=names,
    )


def run_text(text: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The one result of a program, its arguments by name."""
    part = EmulatedPartition(text)
    (found,) = part.call([arrays[one.tensor.name] for one in part.program.arguments])
    return found


def run_kernel(
    kernel: Kernel,
    arrays: Mapping[str, np.ndarray],
    *,
    profile: DeviceProfile = PROFILE,
    states: Sequence[str] = (),
) -> np.ndarray:
    """What it leaves, run from its text; its buffers must fit half the chip, as they are to."""
    assert kernel.onchip_bytes <= profile.tile_bytes
    program = program_of(kernel, onchip_bytes=profile.onchip_bytes, states=states)
    return run_text(tile_text(program), arrays)


def random_arrays(kernel: Kernel, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of the order of 1 for every float argument, codes for int8."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for tensor in (*kernel.inputs, *kernel.outputs):
        dtype = DTYPES[tensor.dtype]
        if dtype == np.int8:
            found[tensor.name] = random.integers(-127, 128, tensor.shape).astype(np.int8)
        elif dtype != np.int64:
            found[tensor.name] = random.standard_normal(tensor.shape).astype(dtype)
    return found
