"""The other three tabs as a visitor meets them."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_counterfactual_page import SETTLED, TRIES, fake_example, overflow, set_option, violations

pytestmark = [pytest.mark.browser, pytest.mark.flaky(reruns=2)]  # a busy machine may be late, and pytest says so


def open_tab(page: Page, name: str) -> None:
    """Open a tab; all of them can be seen, also where the window is narrow."""
    tab = page.get_by_role("tab", name=name, exact=True).first
    for _ in range(TRIES):  # a click while the page is laid out may miss
        tab.click()
        page.wait_for_timeout(SETTLED)
        if tab.get_attribute("aria-selected") == "true":
            return
    pytest.fail(f"the tab {name} does not open")


def test_a_tab_without_a_photo_says_what_to_do(page: Page) -> None:
    for name in ("Trace Removal", "Explain"):
        open_tab(page, name)
        expect(page.get_by_text("First choose a photo with a face").locator("visible=true")).to_be_visible()


def test_stored_removal_of_an_example(page: Page) -> None:
    fake_example(page)
    open_tab(page, "Trace Removal")
    page.get_by_role("heading", name="4 What is left of the verdicts").wait_for()
    expect(page.get_by_text("TR-Net", exact=False).locator("visible=true").first).to_be_visible()
    expect(page.get_by_role("columnheader", name="How often it is wrong").locator("visible=true")).to_be_visible()
    expect(page.get_by_role("heading", name="What saving again does")).to_be_visible()
    assert violations(page) == []


def test_a_stronger_removal(page: Page) -> None:
    fake_example(page)
    open_tab(page, "Trace Removal")
    set_option(page, "Strength of TR-Net", 1.5)
    page.get_by_role("button", name="Remove the traces of this face").click()
    expect(page.locator(".status").get_by_text("1.5 times what TR-Net was trained to make")).to_be_visible(
        timeout=120_000
    )
    expect(page.get_by_text(re.compile("Settings of TR-Net: .* strength 1.5"))).to_be_visible()


def test_removal_table_fits_a_phone(phone: Page) -> None:
    fake_example(phone)
    open_tab(phone, "Trace Removal")
    phone.get_by_role("heading", name="4 What is left of the verdicts").wait_for()
    assert overflow(phone) <= 0


def test_one_map_with_its_test(page: Page) -> None:
    fake_example(page)
    open_tab(page, "Explain")
    page.get_by_label("Which method?").click()
    page.get_by_role("option", name="Grad-CAM", exact=True).click()
    page.get_by_role("button", name="Show where it looked").click()
    page.get_by_role("heading", name="4 Where it looked").wait_for(timeout=120_000)
    expect(page.get_by_role("heading", name="The test")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Sufficiency").locator("visible=true")).to_be_visible()
    expect(page.get_by_text(re.compile("Settings: detector .* method gradcam")).locator("visible=true")).to_be_visible()


def test_quiz_sets_a_score_beside_the_detectors(page: Page) -> None:
    open_tab(page, "Evaluate")
    open_tab(page, "You against the detectors")
    page.get_by_role("button", name="Start the quiz").click()
    expect(page.get_by_text(re.compile("Face 1 of"))).to_be_visible(timeout=120_000)
    count = int(re.search(r"Face 1 of (\d+)", page.locator("text=/Face 1 of/").inner_text()).group(1))
    for place in range(count):
        expect(page.get_by_text(f"Face {place + 1} of {count}")).to_be_visible()
        page.get_by_role("button", name="Fake", exact=True).click()
    expect(page.get_by_role("rowheader", name="You", exact=True)).to_be_visible()


def test_results_of_a_run_disappear_with_its_pictures(page: Page) -> None:
    open_tab(page, "Evaluate")
    open_tab(page, "Your own pictures")
    sample = page.get_by_label("Use the bundled sample set instead")
    sample.check()
    page.get_by_role("button", name=re.compile("^Run it on up to")).click()
    heading = page.get_by_role("heading", name="What cannot be concluded").locator("visible=true")
    heading.wait_for(timeout=240_000)
    expect(page.get_by_text("Download tables, plots and page").locator("visible=true")).to_be_visible()
    assert violations(page) == []
    sample.uncheck()
    expect(heading).to_have_count(0)
    expect(page.get_by_text("Download tables, plots and page").locator("visible=true")).to_have_count(0)
