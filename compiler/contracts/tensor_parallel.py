"""What several ranks of one model are: what divides, and how they exchange what they computed.

Each rank runs a graph of its own share of every layer. Two fused operators stand where the ranks
meet, and a target that runs ranks takes both whole:

    AllReduce(x)   the sum over the ranks of x, the same on each
    AllGather(x)   the ranks' x joined along the last axis, in the order of the ranks

Query head h of H belongs to rank h // (H / ways). Where the key and value heads K do not divide by
the ways, each is repeated `kv_repeats` times, and the copies divide: a rank holds the heads that
its queries read (`kv_heads_of_rank`), and some of them stand on several ranks.
"""

from collections.abc import Mapping
from math import gcd
from typing import Protocol

import numpy as np

from compiler.contracts.errors import CompilerError, ConfigError

ALL_REDUCE = "AllReduce"
ALL_GATHER = "AllGather"
COLLECTIVES = (ALL_REDUCE, ALL_GATHER)


class Collectives(Protocol):
    """One rank's line to the others. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This rank."""
        ...

    @property
    def ways(self) -> int:
        """How many there are."""
        ...

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum over the ranks, in their order.

        It is taken in float32 at least, and rounded once to the dtype of `array`.

        Raises:
            RunError: Another rank failed, is gone or does not answer.
        """
        ...

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """The ranks' arrays joined along the last axis, in their order.

        Raises:
            RunError: As `all_reduce`.
        """
        ...

    def close(self) -> None:
        """Leave; the others must have no call open."""
        ...


def kv_repeats(kv_heads: int, ways: int) -> int:
    """How often each key head is repeated so that the copies divide by the ways; mostly once."""
    return ways // gcd(kv_heads, ways)


def kv_heads_of_rank(kv_heads: int, ways: int, rank: int) -> tuple[int, ...]:
    """The key heads that a rank holds, in order: (0, 0, 1) of 3 heads on the first of 2 ranks."""
    repeats = kv_repeats(kv_heads, ways)
    count = kv_heads * repeats // ways
    return tuple((rank * count + index) // repeats for index in range(count))


def sharding_violations(
    config: Mapping[str, object], *, ways: int, align_qkv: bool, places: Mapping[str, str]
) -> list[CompilerError]:
    """What of a model does not divide, from its config.json alone.

    Args:
        config: config.json; what it does not say is left to the pass, which sees the graph.
        ways: Number of ranks.
        align_qkv: Whether key heads may be repeated.
        places: Option path -> `file:line:column`.
    """
    place = places.get("frontend.model_kwargs.tp")
    found: list[CompilerError] = []
    for key in ("num_attention_heads", "intermediate_size"):
        size = config.get(key)
        if isinstance(size, int) and size % ways:
            message = f"{key} is {size}, which tp {ways} does not divide"
            hint = f"choose a tp that does: {', '.join(map(str, _divisors(size)))}"
            found.append(ConfigError(message, where=place, hint=hint, code="indivisible"))
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else kv_heads
    if isinstance(kv_heads, int) and kv_heads % ways and not align_qkv:
        found.append(unaligned(kv_heads, ways, where=place))
    return found


def unaligned(kv_heads: int, ways: int, *, where: str | None) -> ConfigError:
    """Key heads that do not divide, without leave to repeat them."""
    repeats = kv_repeats(kv_heads, ways)
    return ConfigError(
        f"num_key_value_heads is {kv_heads}, which tp {ways} does not divide",
        where=where,
        hint=f"write `align_qkv: true` under frontend.model_kwargs to store each {repeats} times",
        code="kv-heads",
    )


def _divisors(size: int) -> list[int]:
    return [ways for ways in range(1, min(size, 16) + 1) if size % ways == 0]
