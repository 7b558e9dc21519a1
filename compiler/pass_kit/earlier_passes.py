"""The built-in passes that run before a pass: what it requires, and a few drawn besides."""

import dataclasses
import random
import typing
from collections.abc import Iterable, Mapping

from compiler import registry
from compiler.config import FOLD_PASS, SHARD_PASS
from compiler.contracts.errors import ConfigError
from compiler.contracts.pass_base import Pass
from compiler.pass_order import PlannedPass, arrange

_MISSING = dataclasses.MISSING

# The build runs these itself, behind every pass that a YAML may list.
_OF_THE_BUILD = frozenset((FOLD_PASS, SHARD_PASS))

# How often a built-in pass that is not required stands before the tried one: one that the tried
# pass follows, and any other.
_FOLLOWED, _SHARE = 0.7, 0.25
# How often an option of such a pass has another value than its default.
_OTHER_OPTION = 0.3
# How often a pass that the tried one follows has the same word for an option of the same name: what
# looks for weights of a dtype is to find some.
_SAME_WORD = 0.7
# How often nothing but the required passes stands before it.
_BARE = 0.25


def required_earlier(rewriting: Pass) -> tuple[Pass, ...]:
    """What `rewriting` requires, and whatever that requires, in a valid order."""
    return _ordered(_closure(_by_name(rewriting.required())).values(), random.Random(0))


def draw_earlier(rewriting: Pass, draw: random.Random) -> tuple[Pass, ...]:
    """What `rewriting` requires and built-in passes that may stand before it, in a valid order."""
    chosen = _closure(_by_name(rewriting.required()))
    if draw.random() < _BARE:
        return _ordered(chosen.values(), draw)
    for name in sorted({*registry.PASSES} - _OF_THE_BUILD):
        is_followed = name in rewriting.after
        drawn = draw.random() < (_FOLLOWED if is_followed else _SHARE)
        own = _words_of(rewriting) if is_followed else {}
        added = _closure(_with_drawn_options(name, draw, own)) if drawn else {}
        if not any(_follows(one, rewriting.name) for one in added.values()):
            chosen = added | chosen
    return _ordered(chosen.values(), draw)


def _follows(one: Pass, name: str) -> bool:
    return name in (one.name, *one.after, *one.required())


def choices_of(kind: type[Pass]) -> Mapping[str, tuple[str, ...]]:
    """The options of a pass that name one of several words, and these words."""
    types = typing.get_type_hints(kind)
    return {
        field.name: typing.get_args(types[field.name])
        for field in dataclasses.fields(kind)
        if typing.get_origin(types[field.name]) is typing.Literal
    }


def plainest(kind: type[Pass], **options: str) -> Pass | None:
    """A pass with these options and defaults for the rest.

    An option without a default takes the first of its words; None where it has no words either.
    """
    words = choices_of(kind)
    for field in dataclasses.fields(kind):
        has_default = (field.default, field.default_factory) != (_MISSING, _MISSING)
        if has_default or field.name in options:
            continue
        if field.name not in words:
            return None
        options[field.name] = words[field.name][0]
    return kind(**options)


def _words_of(one: Pass) -> dict[str, str]:
    """The words that a pass has for its options."""
    return {option: getattr(one, option) for option in choices_of(type(one))}


def _with_drawn_options(name: str, draw: random.Random, own: Mapping[str, str]) -> list[Pass]:
    """One pass, or none where an option of it has to be given and is not one of several words."""
    kind = registry.load_pass(name)
    options = {
        option: draw.choice(words)
        for option, words in sorted(choices_of(kind).items())
        if draw.random() < _OTHER_OPTION
    }
    for option, words in sorted(choices_of(kind).items()):
        if own.get(option) in words and draw.random() < _SAME_WORD:
            options[option] = own[option]
    made = plainest(kind, **options)
    return [] if made is None else [made]


def _closure(passes: Iterable[Pass]) -> dict[str, Pass]:
    """These, and what they require with default options, by name."""
    found: dict[str, Pass] = {}
    waiting = list(passes)
    while waiting:
        one = waiting.pop()
        if one.name not in found:
            found[one.name] = one
            waiting += _by_name(one.required())
    return found


def _by_name(names: Iterable[str]) -> list[Pass]:
    """Registered passes with the plainest options.

    Raises:
        ConfigError: One has an option that has to be given, and no words to choose from.
    """
    found = {name: plainest(registry.load_pass(name)) for name in sorted(names)}
    for name, one in found.items():
        if one is None:
            raise ConfigError(
                f"pass '{name}' is required and has an option that has to be given",
                hint="give that option a default",
                code="bad-plugin",
            )
    return [one for one in found.values() if one is not None]


def _ordered(passes: Iterable[Pass], draw: random.Random) -> tuple[Pass, ...]:
    """An order that keeps what each declares; ties are broken by `draw`."""
    drawn = sorted(passes, key=lambda one: one.name)
    draw.shuffle(drawn)
    planned = arrange([PlannedPass(one, one.name, is_placed=False) for one in drawn])
    return tuple(one.rewrite for one in planned)
