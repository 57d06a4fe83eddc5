"""The panel at the foot of the page, and a short video, as a visitor meets them."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import films
from tests.browser.test_counterfactual_page import overflow, violations

pytestmark = pytest.mark.browser
PANEL = "Where it runs, and which models are here"
VIDEO = "A short video instead of a photo"


def test_a_model_is_fetched_on_a_click_and_can_be_chosen(page: Page) -> None:
    page.get_by_role("button", name=PANEL).click()
    expect(page.get_by_text("The models run on the processor")).to_be_visible()
    expect(page.get_by_role("row", name="FFHQ 1024 (Hub)")).to_contain_text("1,202 MB")
    page.get_by_label("Model to fetch").click()
    page.get_by_role("option", name="Xception (FF++)").click()
    page.get_by_role("button", name="Fetch it").click()
    expect(page.get_by_role("alert").filter(has_text="Not fetched")).to_contain_text("repository")
    page.get_by_label("Model to fetch").click()
    page.get_by_role("option", name="EfficientNet-B0 (FF++)").click()
    page.get_by_role("button", name="Fetch it").click()
    expect(page.get_by_text("Fetched.", exact=True)).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="Not fetched")).to_be_hidden()
    assert violations(page) == []
    page.get_by_role("button", name=PANEL).click()
    page.get_by_role("button", name=VIDEO).click()
    page.get_by_label("Which detector?").locator("visible=true").click()
    expect(page.get_by_role("option", name="EfficientNet-B0 (FF++)")).to_be_visible()


def test_the_panel_fits_a_phone(phone: Page) -> None:
    phone.get_by_role("button", name=PANEL).click()
    expect(phone.get_by_text("What can be fetched from the Hub")).to_be_visible()
    assert overflow(phone) <= 0
    assert violations(phone) == []


def test_a_video_is_searched(phone: Page, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(films.encode(films.moving_face(8, hidden=(4,))))
    phone.get_by_role("button", name=VIDEO).click()
    phone.locator("input[type=file][accept*=video]").set_input_files(tmp_path / "film.mp4")
    phone.locator("video").first.wait_for()  # it has arrived
    expect(phone.get_by_role("button", name="Clear")).to_be_visible()
    expect(phone.get_by_role("button", name="Trim video to selection")).to_be_hidden()  # it would need another site
    phone.get_by_role("button", name="Search every frame").click()
    expect(phone.locator(".status").get_by_text("8 frames were taken")).to_be_visible(timeout=300_000)
    expect(
        phone.locator(".status").get_by_text("1 frame was skipped: the face that was followed is not seen.")
    ).to_be_visible()
    expect(phone.get_by_role("img", name="Scores of")).to_be_visible()
    phone.get_by_text("The scores as a table").click()
    expect(phone.get_by_role("columnheader", name="In the saved video")).to_be_visible()
    assert phone.locator("video").last.evaluate("one => one.error === null")
    assert overflow(phone) <= 0
    assert violations(phone) == []
