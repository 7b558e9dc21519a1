"""What targets there are, and what each can do on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compiler import registry
from compiler.contracts.errors import CompilerError, MachineLacks
from compiler.contracts.target_base import Probe, Target


@dataclass(frozen=True)
class TargetSummary:
    """One target.

    Attributes:
        name: As `backend.type` takes it.
        aliases: Its other names.
        owner: The distribution that brings it; empty where nothing does.
        opens: `checkpoint`, `program` or `bundle`; only who opens bundles builds them.
        variants: What may follow its name in a comparison: `torch@bf16`.
        has_ranks: Whether it builds and runs several ranks.
        can_build: Whether it builds here.
        can_run: Whether it runs here.
        missing: What it lacks, each with how to get it.
        facts: What else it says of this machine.
        problem: Why it cannot be asked; then it can do nothing.
    """

    name: str
    aliases: tuple[str, ...]
    owner: str = ""
    opens: str = ""
    variants: tuple[str, ...] = ()
    has_ranks: bool = False
    can_build: bool = False
    can_run: bool = False
    missing: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    problem: str | None = None

    @property
    def is_able(self) -> bool:
        """Whether it can do here all that it is for."""
        return self.can_run and (self.can_build or self.opens != "bundle")


def list_targets() -> tuple[TargetSummary, ...]:
    """Every target that is installed or declared, by name; a broken one says what is wrong."""
    return tuple(_listed(name) for name in registry.declared_targets())


def probe_target(name: str) -> TargetSummary:
    """What one target can do here.

    Args:
        name: Its name or an alias.

    Raises:
        ConfigError: There is no such target, or it is broken.
        MachineLacks: Its module needs a package that is not installed.
    """
    target = registry.load_target(name, where="command line")()
    return _described(target, registry.resolve_target(name), probe=target.probe())


def able_target(name: str) -> Target:
    """A target that can do here what it is for.

    Raises:
        ConfigError: There is no such target, or it is broken.
        MachineLacks: It cannot build or cannot run here; says what is missing.
    """
    target = registry.load_target(name, where="command line")()
    probe = target.probe()
    if _described(target, registry.resolve_target(name), probe=probe).is_able:
        return target
    raise MachineLacks(
        f"target '{target.name}' cannot {'run' if probe.can_build else 'build'} here: "
        f"{'; '.join(probe.missing) or 'it does not say why'}",
        hint=f"see python -m compiler targets probe {target.name}",
    )


def _listed(name: str) -> TargetSummary:
    aliases = registry.target_aliases(name)
    owner = ""
    try:
        owner = registry.target_owner(name)
        target = registry.load_target(name)()
        return _described(target, name, probe=target.probe())
    except CompilerError as error:
        return TargetSummary(name, aliases, owner, problem=error.message)
    except Exception as error:  # a stranger's code: its row says what it raises
        problem = f"{type(error).__name__}: {error}"
        return TargetSummary(name, aliases, owner, problem=f"cannot be probed: {problem}")


def _described(target: Target, name: str, *, probe: Probe) -> TargetSummary:
    return TargetSummary(
        name=name,
        aliases=registry.target_aliases(name),
        owner=registry.target_owner(name),
        opens=target.opens,
        variants=target.variants,
        has_ranks=target.has_ranks,
        can_build=probe.can_build,
        can_run=probe.can_run,
        missing=probe.missing,
        facts=probe.facts,
    )
