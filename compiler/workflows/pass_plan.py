"""config and target -> the passes of a build, in order, as the YAML changes them.

The YAML's or the default list and what `frontend.quantize` adds, then what the target adds and the
list lacks; then `drop`, `replace`, `set` and `add` change it; last, what was given no place, the
quantizer's passes among it, finds one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler import registry
from compiler.config import BuildConfig, NamedPass, PassOption, PassSpec, build_passes
from compiler.contracts.errors import CompilerError, ConfigError, raise_all
from compiler.contracts.target_base import PassChoice
from compiler.pass_order import PlannedPass, arrange, check_order


@dataclass(frozen=True)
class _Entry:
    """A pass of the list before it is made."""

    spec: PassSpec
    is_placed: bool = True
    stands_for: str = ""

    def is_called(self, name: str) -> bool:
        return name in (self.spec.name, self.stands_for)


def planned_passes(
    config: BuildConfig, choices: Sequence[PassChoice], *, target: str
) -> tuple[PlannedPass, ...]:
    """The passes that run.

    Args:
        config: Its list, and its changes.
        choices: What the target adds.
        target: The target's name, for places.

    Raises:
        CompilerErrors: A change speaks of a pass that the list does not hold; a pass refuses its
            options; no order satisfies what the passes declare.
    """
    quantizers = {spec.name for spec in config.quantizers}
    listed = [_Entry(spec, is_placed=spec.name not in quantizers) for spec in config.pass_list]
    place = f"target {target}"
    added = [
        _Entry(PassSpec(choice.name, _options(choice), place))
        for choice in choices
        if not any(entry.is_called(choice.name) for entry in listed)
    ]
    entries = _changed(config, listed, added)
    built = build_passes([entry.spec for entry in entries], folder=config.path.parent)
    expected = {named.name: count for named, count in config.passes.expect}
    planned = [
        PlannedPass(
            one,
            entry.spec.place,
            is_placed=entry.is_placed,
            expected=expected.get(entry.spec.name) or expected.get(entry.stands_for),
            stands_for=entry.stands_for,
            spelled=entry.spec.name,
        )
        for one, entry in zip(built, entries, strict=True)
    ]
    _refuse_unknown([named for named, _ in config.passes.expect], entries)
    arranged = arrange(planned)
    check_order(arranged)
    return arranged


def passes_of(config: BuildConfig) -> tuple[PlannedPass, ...]:
    """The passes of the build, the target's last; it need not be able to build here.

    Raises:
        CompilerErrors: As `planned_passes`.
    """
    target = registry.load_target(config.backend.type, where=config.place("backend.type"))()
    return planned_passes(config, target.passes(config.target_options()), target=target.name)


def _options(choice: PassChoice) -> dict[str, PassOption]:
    return {
        key: value if value is None or isinstance(value, bool | int | float | str) else tuple(value)
        for key, value in choice.options.items()
    }


def _changed(
    config: BuildConfig, listed: Sequence[_Entry], added: Sequence[_Entry]
) -> list[_Entry]:
    section = config.passes
    entries = [*listed, *added]
    dropped = {named.name for named in section.drop}
    changed = [*section.drop, *(one.name for one in (*section.replace, *section.options))]
    _refuse_unknown(changed, entries)
    replaced = {one.name.name: one.spec for one in section.replace}
    options = {one.name.name: one.spec.options for one in section.options}
    found: list[_Entry] = []
    for entry in (entry for entry in entries if entry.spec.name not in dropped):
        name = entry.spec.name
        if name in replaced:
            entry = replace(entry, spec=replaced[name], stands_for=name)
        if name in options:
            spec = replace(entry.spec, options={**entry.spec.options, **options[name]})
            entry = replace(entry, spec=spec)
        found.append(entry)
    # What says nothing of its place joins the YAML's passes, before the target's.
    border = sum(entry.spec.name not in dropped for entry in listed)
    for one in section.add:
        named = one.before or one.after
        if named is None:
            found.insert(border, _Entry(one.spec, is_placed=False))
            border += 1
            continue
        _refuse_unknown([named], found)
        index = next(i for i, entry in enumerate(found) if entry.is_called(named.name))
        index += one.before is None
        found.insert(index, _Entry(one.spec))
        border += index <= border
    return found


def _refuse_unknown(names: Sequence[NamedPass], entries: Sequence[_Entry]) -> None:
    """Refuse to speak of passes that the list does not hold."""
    known = [entry.spec.name for entry in entries]
    errors: list[CompilerError] = []
    for named in names:
        if not any(entry.is_called(named.name) for entry in entries):
            near = registry.did_you_mean(named.name, known)
            guess = f"did you mean '{near}'? " if near else ""
            errors.append(
                ConfigError(
                    f"pass '{named.name}' is not in the list",
                    where=named.place,
                    hint=f"{guess}the list is {', '.join(known)}",
                    code="unknown-name",
                )
            )
    raise_all(errors)
