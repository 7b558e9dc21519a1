"""Fixtures that tests of several folders share."""

import signal
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from built_bundles import BuiltBundles
from program_text import Golden
from traced_models import TracedModels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--refresh-goldens",
        action="store_true",
        help="write the golden files anew; review their diff before you commit it",
    )


def pytest_configure() -> None:
    """Behind `nohup` or `&` a process ignores Ctrl-C, and so would every process of the tests."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def traced_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedModels]:
    """Tiny models, each graph exported once a session; every caller gets a copy of its own."""
    with pytest.MonkeyPatch.context() as patch:
        yield TracedModels(tmp_path_factory.mktemp("traced-models"), patch)


@pytest.fixture(scope="session")
def built_bundles(tmp_path_factory: pytest.TempPathFactory) -> BuiltBundles:
    """Bundles of tiny models, each built once a session."""
    return BuiltBundles(tmp_path_factory.mktemp("built-bundles"))


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No installed package brings a pass, a target or a model family."""
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(file, text)`: the text equals `golden/<file>` beside the test."""

    def check(file: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / file
        if request.config.getoption("--refresh-goldens"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: see --refresh-goldens"

    return check
