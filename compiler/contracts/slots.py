"""Several prompts in one bundle: each has a slot, a row of the decode graph and caches of its own.

The caches of slot 0 keep their names; those of slot 2 are `past_key_values.0.key.slot2`.
"""


def slot_name(name: str, slot: int) -> str:
    """What belongs to one slot alone: a cache, or a node."""
    return f"{name}.slot{slot}" if slot else name
