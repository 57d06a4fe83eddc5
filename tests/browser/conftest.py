"""Start the app once and drive it with an installed browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.settings import SETTINGS
from tests import running
from tests.hub_server import HubServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # milliseconds; a busy machine may need them


def find_browser() -> str | None:
    """Return the path of an installed browser of the Chromium family."""
    paths = (shutil.which(name) for name in NAMES)
    return next((path for path in (*paths, *PLACES) if path and Path(path).exists()), None)


playwright.expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of the running app, which has a Hub on loopback and an empty cache."""
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        pytest.skip("the models are not in weights/")
    folder, hub = tmp_path_factory.mktemp("hub"), HubServer()
    running.host_a_detector(hub, folder)
    try:
        with running.app(HF_ENDPOINT=hub.url, WEIGHTS_CACHE=str(folder / "cache")) as url:
            yield url
    finally:
        hub.close()


@pytest.fixture(scope="session")
def browser() -> Iterator["playwright.Browser"]:
    """Return a browser, or skip where none is installed."""
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium, Chrome or Edge is installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: "playwright.Browser", address: str) -> Iterator["playwright.Page"]:
    """Return the loaded page at desktop width."""
    yield from open_page(browser, address, 1280)


@pytest.fixture
def phone(browser: "playwright.Browser", address: str) -> Iterator["playwright.Page"]:
    """Return the loaded page at phone width."""
    yield from open_page(browser, address, 390)


def open_page(browser: "playwright.Browser", address: str, width: int) -> Iterator["playwright.Page"]:
    """Open the app in a fresh session and wait for its first step."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    opened.goto(address)
    opened.get_by_role("heading", name="1 Choose a photo").wait_for()
    yield opened
    context.close()
