"""A visitor stops the search of a video: the frames done by then are shown."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import films
from tests.browser.test_counterfactual_page import overflow
from tests.browser.test_where_page import VIDEO

pytestmark = pytest.mark.browser
LONG = 300_000  # milliseconds


def test_a_stopped_video_shows_the_frames_done_so_far(page: Page, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(films.encode(films.moving_face(14)))
    page.get_by_role("button", name=VIDEO).click()
    page.locator("input[type=file][accept*=video]").set_input_files(tmp_path / "film.mp4")
    page.locator("video").first.wait_for()
    part = page.locator(".block", has=page.get_by_role("button", name="Search every frame")).last
    find = page.get_by_role("button", name="Search every frame")
    stop = part.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    find.click()
    expect(stop).to_be_enabled()
    expect(find).to_be_disabled()
    # The first frame is done, and the next ones are not.
    expect(page.get_by_text("Of 14 frames, frames 2 to 6.")).to_be_visible(timeout=LONG)
    stop.click()
    expect(page.locator(".status").get_by_text("The frames done so far are being put together.")).to_be_visible()
    expect(
        page.locator(".status").get_by_text("frames were skipped: the search was stopped before this frame.")
    ).to_be_visible(timeout=LONG)
    expect(page.get_by_role("heading", name="What the other detectors say").last).to_be_visible()
    expect(page.get_by_role("rowheader", name="(searched against)")).to_be_visible()
    expect(page.locator(".status").get_by_text("The frames done so far are being put together.")).to_be_hidden()
    expect(stop).to_be_disabled()
    expect(find).to_be_enabled()
    assert page.locator("video").last.evaluate("one => one.error === null")
    assert overflow(page) <= 0
    # Another search is not stopped by it: it begins anew.
    find.click()
    expect(stop).to_be_enabled()
    expect(page.get_by_text("Finding the face in frame")).to_be_visible(timeout=LONG)
    stop.click()
    expect(find).to_be_enabled(timeout=LONG)
