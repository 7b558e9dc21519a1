"""The drivers that are installed, by name.

The emulator is one. An SDK's registers by entry point in the group `graphlower.vacc_drivers`:

    [project.entry-points."graphlower.vacc_drivers"]
    mine = "my_package.driver:MyDriver"

The environment variable `GRAPHLOWER_VACC_DRIVER` names the one to run with, `emulator` where it is
not set; what follows a colon is the driver's own (`emulator:missing@model.layers.1.mlp.act`).
"""

import importlib
import os
from collections.abc import Mapping
from importlib import metadata

from compiler.contracts.errors import ConfigError, MachineLacks
from targets.vacc.driver import VaccDriver
from targets.vacc.faults import emulator

GROUP = "graphlower.vacc_drivers"
VARIABLE = "GRAPHLOWER_VACC_DRIVER"
EMULATOR = "emulator"


def driver_names() -> tuple[str, ...]:
    """Every driver that is installed."""
    return tuple(sorted({EMULATOR, *(point.name for point in metadata.entry_points(group=GROUP))}))


def load_driver(spelled: str = "") -> VaccDriver:
    """The driver that is spelled `NAME` or `NAME:OPTIONS`, or that the environment names.

    Raises:
        ConfigError: There is no such driver, or it refuses its options.
        MachineLacks: Its module needs what is not installed.
    """
    name, _, options = (spelled or os.environ.get(VARIABLE) or EMULATOR).partition(":")
    if name == EMULATOR:
        return emulator(options)
    points = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        raise ConfigError(
            f"there is no vacc driver '{name}'",
            hint=f"installed: {', '.join(driver_names())}; a package brings one by entry point "
            f"in the group {GROUP}",
        )
    module, _, attribute = points[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        raise MachineLacks(f"vacc driver '{name}' cannot be loaded: {e}") from e
    return found(options) if options else found()


def probed() -> Mapping[str, tuple[str, ...]]:
    """Driver -> what it lacks."""
    found: dict[str, tuple[str, ...]] = {}
    for name in driver_names():
        try:
            found[name] = load_driver(name).probe()
        except (ConfigError, MachineLacks) as e:
            found[name] = (e.message,)
    return found
