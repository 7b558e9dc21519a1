"""Fixtures of the acceptance run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_table import Table, begin_table
from trained_model import build_trained


@pytest.fixture(scope="session")
def table() -> Table:
    """The table of this run, begun anew."""
    return begin_table()


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2-135M in fp32, built by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    yield build_trained(folder)
    shutil.rmtree(folder)
