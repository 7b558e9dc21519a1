"""Prompts in one graph against the same prompts each by itself, on onnxruntime.

    rank0/input_ids --+                            input_ids[1, N] --+
                      +-- a graph for each   ==                      +-- one graph
    rank1/input_ids --+                            caches of slots --+

Every prompt has tokens, lengths and a past of its own, so that a row that reads what belongs to
another shows. In one of the calls a prompt takes no part: its caches must stay as they are.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Arrays
from compiler.contracts.program import Program
from compiler.contracts.slots import slot_name
from compiler.contracts.weight_values import RowReader
from compiler.numerics.feeds import Lengths, lengths_of, program_feeds
from compiler.numerics.float64 import RoundingCheck
from compiler.numerics.measured_pass import ParameterValues
from compiler.numerics.ranks_run import joined_ranks, of_rank
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tolerance import largest_error

# The axis that counts tokens; what is not named here is a cache, and each prompt's own.
_AXES = {"input_ids": 1, "past_length": 0, "valid_length": 0, "logits": 1}
_NO_PART = Lengths(past=0, valid=0)


def folded_error(
    single: Program, folded: Program, read: RowReader, *, batch: int, vocabulary: int
) -> float:
    """Run both on the same prompts; the largest absolute difference in float32.

    Args:
        single: The decode graph of one prompt.
        folded: The same of `batch`.
        read: Rows of a checkpoint tensor.
        batch: Number of prompts.
        vocabulary: Token ids lie below it.

    Raises:
        CheckFailed: In float64, where nothing is rounded, they differ, too; says where.
        PassError: A graph cannot be run.
    """
    apart, together = joined_ranks([single.model()] * batch), folded.model()
    check = RoundingCheck(apart, together)
    sessions = ReferenceSession(apart), ReferenceSession(together)
    values = ParameterValues(read)
    own, shared = values.arrays(single.weights), values.arrays(folded.weights)
    wanted = partial(_joined, batch=batch)
    errors: list[float] = []
    for lengths in _calls(single, batch):
        given = [
            program_feeds(single, one, vocabulary=vocabulary, seed=slot)
            for slot, one in enumerate(lengths)
        ]
        each = {
            of_rank(slot, name): array
            for slot, inputs in enumerate(given)
            for name, array in {**own, **inputs}.items()
        }
        feeds = {**shared, **_folded(given)}
        breach = check.breach(each, feeds, wanted)
        if breach is not None:
            raise CheckFailed(
                f"{batch} prompts together do not give what each gives alone: {breach.said}",
                code="prompts-differ",
            )
        errors.append(largest_error(wanted(sessions[0].run(each)), sessions[1].run(feeds)))
    return max(errors)


def _calls(single: Program, batch: int) -> Iterator[Sequence[Lengths]]:
    """Lengths of every prompt, other ones for neighbours; at last one prompt takes no part."""
    found = lengths_of(single)
    for first in range(len(found)):
        yield [found[(first + slot) % len(found)] for slot in range(batch)]
    yield [*(found[slot % len(found)] for slot in range(batch - 1)), _NO_PART]


def _folded(each: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """What every prompt takes or gives, as the folded graph does."""
    joined: dict[str, np.ndarray] = {}
    for name in each[0]:
        arrays = [one[name] for one in each]
        if name in _AXES:
            joined[name] = np.concatenate(arrays, axis=_AXES[name])
        else:
            joined |= {slot_name(name, slot): array for slot, array in enumerate(arrays)}
    return joined


def _joined(old: Arrays, *, batch: int) -> dict[str, np.ndarray]:
    """The outputs of graphs side by side, as the folded graph gives them."""
    prefixes = [of_rank(slot, "x")[:-1] for slot in range(batch)]
    return _folded(
        [
            {name.removeprefix(prefix): old[name] for name in old if name.startswith(prefix)}
            for prefix in prefixes
        ]
    )
