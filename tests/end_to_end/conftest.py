"""Fixtures that build or load something large, once a session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trained_model import build_trained


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2-135M in fp32, built by the command line as a user builds it."""
    folder = tmp_path_factory.mktemp("trained")
    yield build_trained(folder / "build")
    shutil.rmtree(folder)  # half a gigabyte, which pytest would keep
