"""What the tests of this folder share."""

import pytest
from vacc_bundles import VaccBundles


@pytest.fixture(scope="session")
def vacc_bundles(tmp_path_factory: pytest.TempPathFactory) -> VaccBundles:
    """Bundles for the accelerator, each built once a session."""
    return VaccBundles(tmp_path_factory.mktemp("vacc"))
