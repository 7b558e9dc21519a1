"""Targets that are installed in a folder, for the length of a test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_installation import install_example, write_metadata

# Entry points of one more package; its module lies beside the factories.
BROKEN = {
    "without-bias": "WithoutBiasTarget",
    "sees-padding": "SeesPaddingTarget",
    "stale-after-rewind": "StaleAfterRewindTarget",
    "changed-by-watching": "ChangedByWatchingTarget",
    "other-names": "OtherNamesTarget",
    "unchecked": "UncheckedTarget",
    "of-this-process": "OfThisProcessTarget",
    "undetermined": "Undetermined",
    "accepts-options": "AcceptsOptions",
    "one-at-a-time": "OneAtATime",
    "accepts-dtypes": "AcceptsDtypes",
    "raising": "Raising",
}


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's package, and one of targets that have a fault each."""
    folder = install_example(
        tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("example-source")
    )
    points = {name: f"broken_targets:{kind}" for name, kind in BROKEN.items()}
    write_metadata(folder, "broken-targets", points)
    return folder


@pytest.fixture
def installed(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These targets are registered in this process, and in those that it starts."""
    monkeypatch.syspath_prepend(str(plugins))
    yield
    for name in ("broken_targets", "graphlower_example"):
        sys.modules.pop(name, None)
