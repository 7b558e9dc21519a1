"""What a target says before any work: what it finds here, and what it refuses."""

import json
from collections.abc import Mapping, Sequence

from compiler import registry
from compiler.conformance.models import BLOCKS, MODEL, block_config
from compiler.conformance.results import Outcome, failed, passed
from compiler.conformance.subject import DTYPES, Subject
from compiler.contracts.errors import CompilerError
from compiler.contracts.target_base import TargetOptions

_KINDS = ("checkpoint", "program", "bundle")
# Options that no target has.
_UNKNOWN: Mapping[str, object] = {"conformance_first": 1, "conformance_second": "two"}


def check_probe(subject: Subject) -> Outcome:
    """Its probe answers twice the same, in the types that it declares; names and passes are known.

    What it says must be usable where it is printed: texts that are not empty.
    """
    target = subject.target
    look_at = f"{type(target).__module__}: probe, name, opens"
    if target.name != subject.name:
        return failed(
            "the class has another name than its entry point",
            expected=f"name = '{subject.name}'",
            came=f"name = '{target.name}'",
            look_at="pyproject.toml: the group graphlower.targets",
        )
    if target.opens not in _KINDS:
        return failed(
            "it does not say what it opens",
            expected=f"opens is one of {', '.join(_KINDS)}",
            came=f"opens = {target.opens!r}",
            look_at=look_at,
        )
    first, second = target.probe(), target.probe()
    if first != second:
        return failed(
            "probing changes what is found",
            expected=str(first),
            came=str(second),
            look_at=look_at,
        )
    texts = [*first.missing, *first.facts, *first.facts.values()]
    flawed = [text for text in texts if not isinstance(text, str)]
    if flawed or not all(first.missing):
        return failed(
            "what it finds is no text",
            expected="missing: sentences; facts: a text for each name",
            came=repr(flawed or first.missing),
            look_at=look_at,
        )
    return _declared_passes(subject) if subject.builds else passed("twice the same")


def _declared_passes(subject: Subject) -> Outcome:
    """The passes it adds are registered, and what decides its output can be hashed."""
    options = subject.options(subject.dtype)
    unknown = [
        choice.name
        for choice in subject.target.passes(options)
        if not registry.is_file_pass(choice.name) and choice.name not in registry.passes()
    ]
    if unknown:
        return failed(
            "it adds passes that nobody has registered",
            expected="names that `passes list` shows",
            came=", ".join(unknown),
            look_at="Target.passes",
        )
    prints = [
        json.dumps(dict(subject.target.fingerprint(options)), sort_keys=True) for _ in range(2)
    ]
    if prints[0] != prints[1]:
        return failed(
            "its fingerprint changes from call to call",
            expected=prints[0],
            came=prints[1],
            look_at="Target.fingerprint",
        )
    return passed("twice the same, the passes it adds are registered")


def check_constraints(subject: Subject) -> Outcome:
    """A plain model is accepted; what is wrong is refused, all of it at once, each at its place."""
    if not subject.builds:
        return _refuses_to_build(subject)
    accepted = [dtype for dtype, errors in subject.refusals.items() if not errors]
    if not accepted:
        return failed(
            "it accepts a plain Qwen2 in no dtype of floats",
            expected=f"no error in one of {', '.join(DTYPES)}",
            came="\n".join(str(errors[0]) for errors in subject.refusals.values()),
            look_at="Target.constraints",
        )
    alone = _violations(subject, accepted[0])
    unknown = alone.pop("unknown options")
    outcome = _unknown_options(unknown)
    if outcome is not None:
        return outcome
    together = _constraints(
        subject,
        subject.options("int7" if "dtype" in alone else accepted[0], **_UNKNOWN),
        sizes="odd" if "sizes" in alone else "plain",
    )
    wanted = [error.message for errors in (unknown, *alone.values()) for error in errors]
    said = [error.message for error in together]
    lost = [message for message in wanted if message not in said]
    if lost:
        return failed(
            "of several violations at once it does not say all",
            expected="\n".join(wanted),
            came="\n".join(said) or "no error",
            look_at="Target.constraints: return every error, not the first",
        )
    dtypes = ", ".join(accepted)
    return passed(f"accepts a plain Qwen2 in {dtypes}; {len(wanted)} violations said at once")


def _refuses_to_build(subject: Subject) -> Outcome:
    errors = subject.target.constraints(subject.options("fp32"), block_config(MODEL))
    if errors:
        return passed("says that it builds nothing")
    return failed(
        "it builds no bundles, and accepts to build one",
        expected="an error: it runs models, it does not build bundles",
        came="no error",
        look_at="Target.constraints: leave it to the base class",
    )


def _violations(subject: Subject, dtype: str) -> dict[str, list[CompilerError]]:
    """What is said of each thing that is wrong by itself; nothing where it is not refused."""
    found = {
        "unknown options": _constraints(subject, subject.options(dtype, **_UNKNOWN)),
        "dtype": _constraints(subject, subject.options("int7")),
        "sizes": _constraints(subject, subject.options(dtype), sizes="odd"),
    }
    return {name: errors for name, errors in found.items() if errors or name == "unknown options"}


def _constraints(
    subject: Subject, options: TargetOptions, *, sizes: str = "plain"
) -> list[CompilerError]:
    odd = next(block for block in BLOCKS if block.may_be_refused)
    config = block_config(odd.options if sizes == "odd" else MODEL)
    errors = subject.target.constraints(options, config)
    strange = [error for error in errors if not isinstance(error, CompilerError)]
    assert not strange, f"constraints gives {strange!r}, expected CompilerErrors"
    return errors


def _unknown_options(errors: Sequence[CompilerError]) -> Outcome | None:
    """Each option that no target has is refused at its place; None where it is."""
    places = {f"conformance.yaml:{number}:5" for number, _ in enumerate(_UNKNOWN, start=7)}
    said = {error.where for error in errors}
    if len(errors) < len(_UNKNOWN):
        said = "it says only one of two" if errors else "it accepts"
        return failed(
            f"{said} options that it does not have",
            expected=f"an error for each of backend.compile.{', '.join(_UNKNOWN)}",
            came="\n".join(map(str, errors)) or "no error",
            look_at="Target.constraints: a misspelt option would change nothing, silently",
        )
    if not places <= said:
        return failed(
            "its errors do not say where",
            expected=f"where: {' and '.join(sorted(places))}, from options.places",
            came="\n".join(map(str, errors)),
            look_at="Target.constraints: options.places['backend.compile.NAME']",
        )
    return None
