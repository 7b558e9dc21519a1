"""Whole tile programs of bundles: each load counts, and what is costed is what runs."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from tile_runs import DTYPES
from vacc_bundles import FLOATS, INT8, VaccBundles, VaccModel

from compiler.contracts.errors import TargetError
from targets.vacc.cost_model import Cost, call_lengths, program_cost
from targets.vacc.emulator import EmulatedPartition
from targets.vacc.tile_program import Run

pytestmark = pytest.mark.slow

# Positions before the call.
PAST = 40
# On a small chip a call takes several tiles: some loads are in loops.
SMALL = VaccModel(compiled=(("onchip_bytes", 16384),))


def text_of(vacc_bundles: VaccBundles, built: VaccModel, phase: str) -> str:
    entry = vacc_bundles.bundle(built).module(phase)  # type: ignore[arg-type]
    assert entry is not None
    (file,) = Path(vacc_bundles.bundle(built).path / entry.folder).glob("*.tiles")
    return file.read_text(encoding="utf-8")


def arguments_of(part: EmulatedPartition, past: int, valid: int) -> list[np.ndarray]:
    """Weights, tokens and caches at random, the lengths as asked."""
    random = np.random.default_rng(0)
    found: list[np.ndarray] = []
    for one in part.program.arguments:
        shape, dtype = one.tensor.shape, DTYPES[one.tensor.dtype]
        values = random.standard_normal(shape) / 8
        if dtype == np.int8:
            values = random.integers(-127, 128, shape)
        if dtype == np.int64:
            named = {"past_length": past, "valid_length": valid}
            values = np.full(shape, named.get(one.tensor.name, 3))
        if one.tensor.name.endswith("_scale"):
            values = np.abs(values) / 127
        found.append(values.astype(dtype))
    return found


def outcome(text: str) -> list[bytes]:
    """All that a call of a decode program leaves, logits and caches."""
    part = EmulatedPartition(text)
    return [one.tobytes() for one in part.call(arguments_of(part, PAST, 1))]


@pytest.mark.parametrize("built", [FLOATS, INT8, SMALL], ids=["fp16", "int8", "small-chip"])
def test_no_load_of_a_decode_program_can_be_left_out(
    vacc_bundles: VaccBundles, built: VaccModel
) -> None:
    text = text_of(vacc_bundles, built, "decode")
    whole, loads = outcome(text), list(re.finditer(r" +load .*\n", text))
    assert outcome(text) == whole
    assert len(loads) > 25
    for load in loads:
        start, end = load.span()
        with contextlib.suppress(TargetError):
            assert outcome(text[:start] + text[end:]) != whole, load[0]


def test_a_program_that_outgrows_the_chip_is_refused(vacc_bundles: VaccBundles) -> None:
    text = text_of(vacc_bundles, SMALL, "prefill")
    part = EmulatedPartition(text)
    needed = max(kernel.onchip_bytes for kernel in part.program.kernels)
    assert needed <= 16384 // 2
    EmulatedPartition(text.replace("onchip 16384", f"onchip {needed}"))
    with pytest.raises(TargetError, match=f"take {needed} bytes, the chip holds {needed - 1}"):
        EmulatedPartition(text.replace("onchip 16384", f"onchip {needed - 1}"))


class Metering(EmulatedPartition):
    """Counts the bytes that loads and stores move."""

    loads = stores = 0

    def loaded(self, run: Run, name: str, values: np.ndarray) -> np.ndarray:
        self.loads += values.nbytes
        return values

    def stored(self, run: Run, values: np.ndarray) -> np.ndarray:
        outputs = self.program.kernel_of[run.kernel].outputs
        self.stores += values.size * DTYPES[outputs[0].dtype].itemsize
        return values


@pytest.mark.parametrize("built", [FLOATS, INT8, SMALL], ids=["fp16", "int8", "small-chip"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_cost_model_counts_what_the_emulator_moves(
    vacc_bundles: VaccBundles, built: VaccModel, phase: str
) -> None:
    part = Metering(text_of(vacc_bundles, built, phase))
    lengths = call_lengths(phase, built.model.window if phase == "prefill" else 1, 48)
    cost = sum(program_cost(part.program, lengths).values(), Cost())
    part.call(arguments_of(part, lengths["past_length"], lengths["valid_length"]))
    assert (part.loads, part.stores) == (cost.loaded_bytes, cost.stored_bytes)
