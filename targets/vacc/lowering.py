"""What a composite is, and what it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass

from targets.vacc.device import DeviceProfile
from targets.vacc.relax_types import Body, shape_of
from targets.vacc.tile_program import Collective, Kernel

# A kernel is made to be compared with those that are there; it is named when it is new.
UNNAMED = "new"


@dataclass(frozen=True)
class Lowering:
    """What one composite becomes.

    Attributes:
        kernel: None for a view, which is no work, and where ranks meet.
        arguments: Parameters of the composite, in the kernel's order.
        written: The parameters that are written in place, as the kernel's results; without a kernel
            the one that another composite has written.
        part: Of a part of each row: 0 for the first, -1 for the last, 1 for one between.
        collective: What ranks do there; None elsewhere.
        ways: How many they are.
    """

    kernel: Kernel | None
    arguments: tuple[int, ...]
    written: tuple[int, ...] = ()
    part: int | None = None
    collective: Collective | None = None
    ways: int = 1


@dataclass(frozen=True)
class Composite:
    """A composite function, what is known of its parameters on the device, and the device."""

    name: str
    body: Body
    facts: Mapping[str, str]
    dtypes: tuple[str, ...]
    profile: DeviceProfile

    def shape(self, index: int) -> tuple[int, ...]:
        """Of a parameter."""
        return shape_of(self.body.params[index])

    @property
    def result(self) -> tuple[int, ...]:
        """The result's shape."""
        return shape_of(self.body.result)
