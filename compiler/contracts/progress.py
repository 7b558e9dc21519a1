"""How long work reports where it stands; the command line draws it, a library may ignore it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageRecord:
    """One finished stage: wall seconds, and the peak resident bytes of all processes during it."""

    name: str
    seconds: float
    peak_rss_bytes: int


class Progress:
    """Receives the events of a workflow. This base is silent; override what is wanted."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def update(self, done: int, total: int, unit: str) -> None:
        """`done` of `total` units (`bytes`, `layers`, ...) of the running stage are done."""

    def note(self, text: str) -> None:
        """Something worth a line: `up to date`, a fallback, a default that was chosen."""

    def finish(self, record: StageRecord) -> None:
        """The running stage is done."""
