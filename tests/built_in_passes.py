"""The built-in passes as they are tried: each with every word that its options may be."""

from compiler import registry
from compiler.contracts.pass_base import Pass
from compiler.pass_kit.earlier_passes import choices_of, plainest
from passes.store_kv_cache import StoreKVCache

# Rewrites nothing, and says so in a test of its own.
IDLE = StoreKVCache("float32")


def built_in_passes() -> tuple[Pass, ...]:
    """By name; with default options first, then with one option changed at a time."""
    found: list[Pass | None] = []
    for name in sorted(registry.PASSES):
        kind = registry.load_pass(name)
        found.append(plainest(kind))
        for option, words in choices_of(kind).items():
            found += [plainest(kind, **{option: word}) for word in words]
    assert None not in found, "a pass has an option that only a test of its own can give"
    return tuple(dict.fromkeys(one for one in found if one is not None and one != IDLE))
