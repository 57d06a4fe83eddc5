"""The counterfactual tab as a visitor meets it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests import pictures

pytestmark = [pytest.mark.browser, pytest.mark.flaky(reruns=2)]  # a busy machine may be late, and pytest says so

VERDICTS = ".combined"
REFUSAL = ".answer"
EXAMPLES = ".examples button.thumbnail-item"
FIND = re.compile("^Find what would")
RESULT = re.compile("^4 What would")
WORKING = re.compile(r"Step \d+ of at most|score, step by step")  # the curve stays when the search has ended
TRIES, SETTLED = 30, 500  # how often something is tried on a page that is still being laid out, and milliseconds
MAX_TABS = 80  # more presses than there are stops before anything on the page


def upload(page: Page, path: Path) -> None:
    """Choose a file in step 1."""
    page.set_input_files("input[type=file]", path)


def choose_example(page: Page, number: int) -> None:
    """Click an example and wait for its stored result."""
    example = page.locator(EXAMPLES).nth(number)
    label = example.locator("img").get_attribute("alt")
    example.click()
    page.locator(".status").get_by_text(f"The stored result for “{label}”").wait_for()
    page.locator(VERDICTS).first.wait_for()
    page.get_by_role("heading", name=RESULT).wait_for()


def fake_example(page: Page) -> None:
    """Choose the first example that was called fake, for only then there is a search to show."""
    page.locator(EXAMPLES).first.wait_for()
    for number in range(page.locator(EXAMPLES).count()):
        choose_example(page, number)
        if page.get_by_role("heading", name="Before and after").is_visible():
            return
    pytest.fail("no example has a search to show")


def set_option(page: Page, label: str, value: float) -> None:
    """Set a number under the open tab's further options."""
    page.get_by_role("button", name="More options").locator("visible=true").click()
    field = page.get_by_label(re.compile(f"number input for {label}"))
    slider = page.get_by_label(re.compile(f"range slider for {label}"))
    for _ in range(TRIES):  # fields that have only just appeared are set to their first value once more
        field.fill(f"{value:g}")
        field.press("Tab")
        page.wait_for_timeout(SETTLED)
        if slider.input_value() == f"{value:g}":
            return
    pytest.fail(f"the number under {label} does not stay")


def portrait(folder: Path) -> Path:
    """Write a photo of two people and return its path."""
    path = folder / "two.png"
    path.write_bytes(pictures.encode(pictures.two_people(), "PNG"))
    return path


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def broken_words(page: Page) -> list[str]:
    """Return the words in sight that begin on one line and end on another."""
    return page.evaluate(
        """() => {
            const found = [], range = document.createRange();
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const node = walker.currentNode;
                if (!node.parentElement.checkVisibility()) continue;
                for (const word of node.data.matchAll(/\\p{L}{2,}/gu)) {
                    range.setStart(node, word.index);
                    range.setEnd(node, word.index + word[0].length);
                    const lines = [...range.getClientRects()].filter(one => one.width > 0).map(one => one.top);
                    if (Math.max(...lines) - Math.min(...lines) > 4) found.push(word[0]);
                }
            }
            return found;
        }"""
    )


def violations(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe()
    issues = axe.run(page).response["violations"]
    serious = [issue for issue in issues if issue["impact"] in {"serious", "critical"}]
    return [f"{issue['id']}: {[node['html'][:120] for node in issue['nodes']]}" for issue in serious]


def test_only_the_first_step_is_shown_at_first(page: Page) -> None:
    expect(page.get_by_role("heading", name="1 Choose a photo")).to_be_visible()
    expect(page.get_by_role("heading", name="2 What the detectors say")).to_have_count(0)
    expect(page.get_by_text("Use a photo of yourself or of someone who has agreed")).to_be_visible()
    assert violations(page) == []


def test_example_shows_all_its_results_at_once(page: Page) -> None:
    fake_example(page)
    for heading in ("2 What the detectors say", "From the photo to the counterfactual", "Where it changed"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.get_by_text("How could this be wrong?")).to_be_visible()
    expect(page.locator(VERDICTS).first).to_contain_text("What these detectors miss")
    assert violations(page) == []


def test_announcements_are_made_once_and_not_repeated_for_another_tab(page: Page) -> None:
    choose_example(page, 0)
    announcer = page.locator("[role=status]#announcer")
    page.evaluate(
        """() => {
            window.heard = [];
            const announcer = document.getElementById("announcer");
            const note = () => window.heard.push(announcer.textContent);
            new MutationObserver(note).observe(announcer, { childList: true });
        }"""
    )
    page.get_by_role("tab", name="Trace Removal").click()
    expect(announcer).to_contain_text("TR-Net")  # what it shows is new
    for name in ("Counterfactual", "Trace Removal", "Explain", "Counterfactual"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(2 * SETTLED)
    page.locator(EXAMPLES).nth(1).click()
    expect(announcer).to_contain_text("Invented face 2")
    heard = page.evaluate("window.heard")
    assert sum("TR-Net" in announcement for announcement in heard) == 1
    assert all(announcement.count("The stored result for") <= 1 for announcement in heard)


def test_photo_of_two_people(page: Page, tmp_path: Path) -> None:
    upload(page, portrait(tmp_path))
    expect(page.locator(VERDICTS).first).to_contain_text("What these detectors miss")
    expect(page.locator(".status").get_by_text("2 faces were found, and the largest one was taken")).to_be_visible()
    page.get_by_role("radio", name="2").check()
    expect(page.locator(".status").get_by_text("number 2, counted from the largest")).to_be_visible()


def test_live_search(page: Page) -> None:
    fake_example(page)
    set_option(page, "Steps at most", 5)
    page.get_by_role("button", name=FIND).click()
    expect(page.locator(".progress")).to_contain_text(WORKING)
    page.get_by_role("heading", name=RESULT).wait_for()
    expect(page.get_by_role("heading", name="Before and after")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^Settings: .* of at most"))).to_contain_text("of at most 5 steps")
    with page.expect_download() as download:
        page.get_by_text("Download the pictures and numbers").click()
    assert download.value.suggested_filename.endswith(".zip")


def search_for_long(page: Page) -> None:
    """Begin a search of an example that finds nothing for a while."""
    fake_example(page)
    set_option(page, "Steps at most", 300)
    page.get_by_label("Length of a step").first.fill("0.00001")  # too short to get anywhere
    page.get_by_role("button", name=FIND).click()


def test_stop_leaves_what_was_there(page: Page) -> None:
    search_for_long(page)
    page.locator("svg.curve").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".status").get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name=FIND)).to_be_enabled()
    expect(page.locator("svg.curve")).to_be_visible()
    expect(page.get_by_role("heading", name=RESULT)).to_have_count(0)


def test_a_waiting_visitor_is_told_so_and_may_leave_the_queue(page: Page, phone: Page) -> None:
    fake_example(phone)
    search_for_long(page)
    page.locator("svg.curve").wait_for()
    phone.get_by_role("button", name=FIND).click()
    expect(phone.locator(".status").get_by_text("Waiting for others")).to_be_visible()
    expect(phone.get_by_role("button", name=FIND)).to_be_disabled()
    phone.get_by_role("button", name="Stop", exact=True).click()
    expect(phone.locator(".status").get_by_text("Stopped.").locator("visible=true")).to_be_visible()
    expect(phone.get_by_role("button", name=FIND)).to_be_enabled()
    page.get_by_role("button", name="Stop", exact=True).click()


def test_an_error_gives_the_buttons_back(page: Page) -> None:
    fake_example(page)
    page.get_by_role("button", name="More options").locator("visible=true").first.click()
    for letter in "SMD":
        page.locator("label", has_text=f"{letter}: ").locator("visible=true").first.click()
    page.get_by_role("button", name=FIND).click()
    expect(page.locator(".status").get_by_text("No style level may change.")).to_be_visible()  # also when its box goes
    expect(page.get_by_role("button", name=FIND)).to_be_enabled()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()


def tab_to(page: Page, target: Locator, key: str = "Tab") -> None:
    """Press Tab, or Shift+Tab, until the target has the focus."""
    for _ in range(MAX_TABS):
        page.keyboard.press(key)
        if target.evaluate("element => element === document.activeElement || element.contains(document.activeElement)"):
            return
    pytest.fail("the keyboard does not reach it")


def test_a_search_by_keyboard_alone(page: Page) -> None:
    tab_to(page, page.locator(EXAMPLES).first)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=RESULT).wait_for()
    tab_to(page, page.get_by_role("button", name=FIND))
    options = page.get_by_role("button", name="More options")
    tab_to(page, options)
    page.keyboard.press("Enter")
    steps = page.get_by_label(re.compile("number input for Steps at most"))
    tab_to(page, steps)
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("5")
    tab_to(page, page.get_by_role("button", name=FIND), "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".progress")).to_contain_text(WORKING)
    page.get_by_role("heading", name=RESULT).wait_for()
    # The result is said aloud, and the button that was blocked has not taken the focus with it.
    expect(page.locator("[role=status]#announcer")).to_contain_text("p_fake")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    slider = page.get_by_label(re.compile("range slider for Position of the divider"))
    if slider.is_visible():  # nothing is compared where the face was below the threshold from the start
        tab_to(page, slider)
        before = slider.input_value()
        page.keyboard.press("ArrowRight")
        expect(slider).not_to_have_value(before)


def test_nothing_scrolls_sideways_on_a_phone(phone: Page, tmp_path: Path) -> None:
    assert overflow(phone) <= 0
    fake_example(phone)
    assert overflow(phone) <= 0
    assert broken_words(phone) == []
    assert violations(phone) == []
    upload_again = phone.get_by_label("Clear", exact=True)
    if upload_again.count():
        upload_again.first.click()
    upload(phone, portrait(tmp_path))
    expect(phone.locator(".status").get_by_text("2 faces were found")).to_be_visible()
    assert overflow(phone) <= 0


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.jpg", b"this is no picture", "This file is not a picture that can be read here."),
        ("cut.jpg", pictures.encode(pictures.astronaut(), "JPEG")[:4000], "The picture is damaged or incomplete."),
        ("empty.png", b"", "The file is empty."),
        ("house.png", pictures.encode(pictures.drawing(), "PNG"), "No face was found in this picture."),
    ],
)
def test_wrong_file_gets_one_sentence(page: Page, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    upload(page, tmp_path / name)
    expect(page.locator(REFUSAL)).to_contain_text(sentence)
    page.get_by_label("Clear", exact=True).or_(page.get_by_label("Remove Image")).first.click()
    upload(page, portrait(tmp_path))
    page.locator(VERDICTS).first.wait_for()


def test_wrong_file_after_an_example_gets_its_sentence_too(page: Page, tmp_path: Path) -> None:
    fake_example(page)
    page.get_by_label("Clear", exact=True).or_(page.get_by_label("Remove Image")).first.click()
    page.locator(VERDICTS).first.wait_for(state="hidden")
    (tmp_path / "text.jpg").write_bytes(b"this is no picture")
    upload(page, tmp_path / "text.jpg")
    expect(page.locator(REFUSAL)).to_contain_text("This file is not a picture that can be read here.")


def test_heic_photo_is_read_and_shown(page: Page, tmp_path: Path) -> None:
    (tmp_path / "phone.heic").write_bytes(pictures.encode(pictures.astronaut(), "HEIF"))
    upload(page, tmp_path / "phone.heic")
    page.locator(VERDICTS).first.wait_for()
    image = page.get_by_test_id("image").locator("img").first
    expect(image).to_have_js_property("naturalWidth", 512)
