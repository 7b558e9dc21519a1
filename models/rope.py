"""Rope types of a configuration: what transformers 5 reads of `rope_parameters` and `rope_scaling`.

    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
 -> Rope("yarn", theta=1e6, factor=4.0, trained=32768, scaling=0.1 * ln(4) + 1, ...)

Defaults and precedence are those of its `modeling_rope_utils`; what the numbers do to the
frequencies is in `models.rotary`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.contracts.errors import CompilerError
from models.config_values import is_integer, is_positive_number, not_yet, number, wrong
from models.probe import ProbeLengths

DEFAULT, DYNAMIC, LINEAR, LONGROPE, YARN = "default", "dynamic", "linear", "longrope", "yarn"
ROPE_TYPES = (DEFAULT, DYNAMIC, LINEAR, LONGROPE, YARN)
_DEFAULT_THETA = 10000.0
# What a rope type reads of its settings, beside theta; the rest is ignored, as it is there.
_READ: Mapping[str, tuple[str, ...]] = {
    DEFAULT: (),
    DYNAMIC: ("factor",),
    LINEAR: ("factor",),
    LONGROPE: ("factor", "attention_factor", "short_factor", "long_factor"),
    YARN: (
        *("factor", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
_LISTS = ("short_factor", "long_factor")
# Everything of a configuration that says something about the rotary embedding.
_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings")


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model.

    Attributes:
        kind: One of ROPE_TYPES.
        theta: Base period.
        factor: How many times the trained length the frequencies are stretched to.
        scaling: Factor on cos and sin (`attention_factor`).
        trained: Length that the model was trained at; past it `dynamic` and `longrope` change.
        beta_fast: Rotations over the trained length above which yarn leaves a frequency alone.
        beta_slow: Rotations below which yarn divides a frequency by `factor`.
        is_truncated: Whether yarn rounds the bounds of its ramp to whole dimensions.
        short: Divisors of the frequencies up to the trained length (longrope).
        long: Divisors past it.
    """

    kind: str
    theta: float
    factor: float
    scaling: float
    trained: int
    beta_fast: float
    beta_slow: float
    is_truncated: bool
    short: tuple[float, ...]
    long: tuple[float, ...]


def read_rope(config: Mapping[str, object], *, default_length: int) -> Rope:
    """The settings of a configuration without violations.

    Args:
        config: config.json.
        default_length: `max_position_embeddings` where the key is missing.
    """
    settings = _settings(config)
    kind = _kind(settings)
    rope = {key: value for key, value in settings.items() if key in _READ[kind]}
    longest = number(config.get("max_position_embeddings"), default_length)
    trained = longest
    if kind in (LONGROPE, YARN):
        trained = number(_trained(config, settings), longest)
    # Without the key, the factor is what the configured length is of the trained one.
    factor = number(rope.get("factor"), 1.0 if kind == DEFAULT else longest / trained)
    return Rope(
        kind=kind,
        theta=number(_theta(config, settings), _DEFAULT_THETA),
        factor=factor,
        scaling=number(rope.get("attention_factor"), _scaling(rope, kind, factor, trained)),
        trained=int(trained),
        beta_fast=number(rope.get("beta_fast"), 32.0),
        beta_slow=number(rope.get("beta_slow"), 1.0),
        is_truncated=bool(rope.get("truncate", True)),
        short=_factors(rope, "short_factor"),
        long=_factors(rope, "long_factor"),
    )


def _scaling(rope: Mapping[str, object], kind: str, factor: float, trained: float) -> float:
    """The factor on cos and sin that the papers of yarn and LongRoPE recommend; 1 elsewhere."""
    if kind == LONGROPE and factor > 1:
        return math.sqrt(1 + math.log(factor) / math.log(trained))
    if kind != YARN:
        return 1.0
    mscale, all_dim = (number(rope.get(key), 0.0) for key in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        return _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dim)
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_violations(
    config: Mapping[str, object], *, head_dim: int, default_length: int
) -> list[CompilerError]:
    """What is missing, of the wrong kind, or not supported, each by its key."""
    name = _key(config)
    rope = config.get(name)
    if rope is not None and not isinstance(rope, Mapping):
        return [wrong(name, rope, "an object or null")]
    rope = _settings(config)
    if any(isinstance(value, Mapping) for value in rope.values()):
        return [not_yet("a rotary embedding for each layer type", name, "one for all layers")]
    kind = _kind(rope)
    if kind not in ROPE_TYPES:
        return [not_yet(f"rope type '{kind}'", name, ", ".join(f"'{one}'" for one in ROPE_TYPES))]
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        return [not_yet("a partial rotary embedding", "partial_rotary_factor", "1.0")]
    theta = _theta(config, rope)
    if theta is not None and not is_positive_number(theta):
        return [wrong("rope_theta", theta, "a positive number")]
    longest = config.get("max_position_embeddings", default_length)
    if (kind != DEFAULT or longest is not None) and not is_integer(longest, least=2):
        return [wrong("max_position_embeddings", longest, "an integer over 1")]
    return list(_setting_violations(config, kind, head_dim=head_dim))


def _setting_violations(
    config: Mapping[str, object], kind: str, *, head_dim: int
) -> Iterator[CompilerError]:
    """What is wrong with the settings that a rope type reads."""
    name, settings = _key(config), _settings(config)
    is_needed = kind in (LINEAR, DYNAMIC) or (kind == YARN and "factor" not in settings)
    if is_needed and settings.get("factor") is None:
        yield wrong(f"{name}.factor", None, f"a positive number for rope type '{kind}'")
    for key in _READ[kind]:
        value = settings.get(key)
        if key in _LISTS:
            if not _is_list_of(value, head_dim // 2):
                yield wrong(f"{name}.{key}", value, f"a list of {head_dim // 2} positive numbers")
        elif key == "truncate":
            if not isinstance(settings.get(key, True), bool):
                yield wrong(f"{name}.{key}", value, "true or false")
        elif value is not None and not is_positive_number(value):
            yield wrong(f"{name}.{key}", value, "a positive number")
    trained = _trained(config, settings)
    if kind in (LONGROPE, YARN) and trained is not None and not is_integer(trained, least=2):
        yield wrong(f"{name}.original_max_position_embeddings", trained, "an integer over 1")
    if kind == DYNAMIC and head_dim < 4:
        yield wrong("head_dim", head_dim, "at least 4 for rope type 'dynamic'")
    if kind == YARN and _theta(config, settings) == 1:
        yield wrong("rope_theta", 1, "a number over 1 for rope type 'yarn'")


def _is_list_of(value: object, length: int) -> bool:
    if not isinstance(value, list) or len(value) != length:
        return False
    return all(is_positive_number(one) for one in value)


def probe_rope(
    config: Mapping[str, object], *, head_dim: int, default_length: int, lengths: ProbeLengths
) -> dict[str, object]:
    """The configuration with the same rope type and scaling at the probe's lengths and head_dim.

    Whatever the model derives from its lengths is written out: the probe's are others.
    """
    rope = read_rope(config, default_length=default_length)
    longest = int(number(config.get("max_position_embeddings"), default_length))
    # Lists are cut to the probe's head: their values decide no form.
    factors = {"short_factor": rope.short, "long_factor": rope.long}
    return {
        **{key: value for key, value in config.items() if key not in _KEYS},
        "max_position_embeddings": lengths.of(longest),
        "rope_parameters": {
            "rope_type": rope.kind,
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "attention_factor": rope.scaling,
            "original_max_position_embeddings": lengths.of(rope.trained),
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.is_truncated,
            **{key: list(value[: head_dim // 2]) for key, value in factors.items() if value},
        },
    }


def _key(config: Mapping[str, object]) -> str:
    """Where both are given, transformers takes rope_scaling, the older spelling."""
    is_older = bool(config.get("rope_scaling")) or config.get("rope_parameters") is None
    return "rope_scaling" if is_older else "rope_parameters"


def _settings(config: Mapping[str, object]) -> Mapping[str, object]:
    rope = config.get(_key(config))
    return rope if isinstance(rope, Mapping) else {}


def _kind(rope: Mapping[str, object]) -> str:
    return str(rope.get("rope_type", rope.get("type", DEFAULT)))


def _theta(config: Mapping[str, object], rope: Mapping[str, object]) -> object:
    own = rope.get("rope_theta")
    return config.get("rope_theta") if own is None else own


def _trained(config: Mapping[str, object], rope: Mapping[str, object]) -> object:
    """A length beside the rope's settings goes before the one among them."""
    key = "original_max_position_embeddings"
    return config[key] if config.get(key) is not None else rope.get(key)


def _factors(rope: Mapping[str, object], key: str) -> tuple[float, ...]:
    factors = rope.get(key)
    return tuple(number(one, 1.0) for one in factors) if isinstance(factors, list) else ()
