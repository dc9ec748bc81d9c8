"""The page of a run, in headless Chromium."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_run import (
    CLASSES,
    CURVE_POINTS,
    MARKUP,
    NAMES,
    SCRIPT_DATA,
    make_data,
    make_page,
    make_run,
    read_data,
)

CARD_NAMES = ".card b"
IMAGE_NAME = "#name"
PRESSED_KEYS = "#layers [aria-pressed=true] kbd"
WORST_FIRST = ["b3", "b4", "b2", "b1", "b0", NAMES[0]]
SUSPICIOUS_FIRST = ["b3", "b4", *NAMES[:4]]


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if not executable:
        pytest.skip("there is no chromium (Debian: apt install chromium)")
    reason = "there is no playwright (pip install playwright)"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a page at an address.

    The test fails for errors in the page's console, missing files and requests to elsewhere.
    """
    problems = []
    contexts = []

    def note_request(request):
        if not request.url.startswith(("file:", "data:")):
            problems.append(request.url)

    def visit(page: Path, address: str = "", **options):
        options.setdefault("viewport", {"width": 1200, "height": 800})
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("requestfailed", lambda request: problems.append(request.url))
        tab.on("request", note_request)
        tab.goto(f"{page.as_uri()}#{address}")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def wait_for_texts(tab, selector: str, texts: list[str]) -> None:
    """Wait until the elements have these texts."""
    from playwright.sync_api import expect

    expect(tab.locator(selector)).to_have_text(texts, timeout=20_000)


def read_numbers(tab, selector: str) -> list[float]:
    return [float(text) for text in tab.locator(selector).all_text_contents()]


def test_worst_images_come_first(visit, page):
    tab = visit(page)
    wait_for_texts(tab, CARD_NAMES, WORST_FIRST)
    assert tab.locator("#scores .bar").count() == 3


def test_names_are_text_and_never_markup(visit, page):
    tab = visit(page, "image=1")
    wait_for_texts(tab, "#classes tbody a", CLASSES)
    wait_for_texts(tab, "#large .stack span", [MARKUP])
    assert MARKUP in tab.locator("#facts").text_content()
    assert tab.locator("[onerror]").count() == 0
    assert "owned" not in tab.title()


def test_images_load_whatever_their_names(visit, page):
    tab = visit(page, "image=1")
    tab.get_by_role("button", name="close").click()
    tab.locator("#gallery").scroll_into_view_if_needed()
    is_loaded = "(image) => image.complete && image.naturalWidth"
    tab.wait_for_function(f"[...document.querySelectorAll('.card img')].every({is_loaded})")


def test_classes_sort_by_a_column(visit, page):
    tab = visit(page)
    heading = tab.locator("#classes th").nth(3)
    cells = "#classes tbody td:nth-child(4)"

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = read_numbers(tab, cells)
    assert values == sorted(values, reverse=True)

    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = read_numbers(tab, cells)
    assert values == sorted(values)
    assert tab.locator("[aria-sort=none]").count() == 2


def test_the_gallery_is_filtered(visit, page):
    tab = visit(page)
    tab.get_by_label("Class").select_option(label=MARKUP)
    wait_for_texts(tab, CARD_NAMES, ["b4", "b2", "b0"])
    tab.locator("#classes tbody a").nth(1).click()  # b3's label is a cat that fills the image
    wait_for_texts(tab, CARD_NAMES, ["b3", "b1", NAMES[0]])
    tab.get_by_label("Class").select_option("-1")
    wait_for_texts(tab, CARD_NAMES, WORST_FIRST)
    tab.locator("#stage").select_option(label="IS-CAM")
    tab.wait_for_selector(".card img[src$='_1.png']")


def test_the_gallery_is_sorted(visit, page):
    tab = visit(page)
    tab.get_by_label("Sort by").select_option("most suspicious")
    wait_for_texts(tab, CARD_NAMES, SUSPICIOUS_FIRST)
    wait_for_texts(tab, ".card mark", ["fills the image", f"no {MARKUP}"])
    tab.get_by_label("Sort by").select_option("disagreement of stages")
    wait_for_texts(tab, f"{CARD_NAMES} >> nth=-1", [NAMES[0]])


def test_an_image_opens_and_keys_toggle_its_layers(visit, page):
    tab = visit(page)
    tab.locator(".card").filter(has_text="b2").click()
    wait_for_texts(tab, IMAGE_NAME, ["b2"])
    assert tab.locator("#layers button").count() == 6  # truth, three masks, a heat map of each kind
    wait_for_texts(tab, PRESSED_KEYS, ["4"])
    presses = [("1", "14"), ("6", "146"), ("4", "16"), ("9", "16"), ("0", ""), ("2", "2")]
    for key, visible in presses:
        tab.keyboard.press(key)
        wait_for_texts(tab, PRESSED_KEYS, list(visible))
        assert tab.locator("#large img").count() == 1 + len(visible)


def test_keys_move_on_to_other_images_and_keep_the_layers(visit, page):
    tab = visit(page)
    tab.locator(".card").filter(has_text="b2").click()
    wait_for_texts(tab, PRESSED_KEYS, ["4"])
    tab.keyboard.press("0")
    wait_for_texts(tab, PRESSED_KEYS, [])
    tab.keyboard.press("2")
    wait_for_texts(tab, PRESSED_KEYS, ["2"])
    presses = [("Right", "b1"), ("Left", "b2"), ("Left", "b4"), ("Left", "b3"), ("Left", "b3")]
    for key, name in presses:
        tab.keyboard.press(f"Arrow{key}")
        wait_for_texts(tab, IMAGE_NAME, [name])
    wait_for_texts(tab, PRESSED_KEYS, ["2"])
    tab.keyboard.press("Escape")
    tab.wait_for_url(re.compile("(?!.*image)"))


def test_the_address_keeps_the_view(visit, page):
    tab = visit(page, "stage=1&sort=most+suspicious&class=2&image=3&layers=t+1_2")
    for _ in range(2):
        wait_for_texts(tab, IMAGE_NAME, ["b2"])
        wait_for_texts(tab, PRESSED_KEYS, ["1", "6"])
        assert tab.locator("#stage").input_value() == "1"
        assert tab.locator("#sort").input_value() == "most suspicious"
        assert tab.locator("#class").input_value() == "2"
        tab.reload()


def test_going_back_opens_the_image_again(visit, page):
    tab = visit(page, "image=3")
    tab.get_by_role("button", name="close").click()
    tab.wait_for_selector("dialog", state="hidden")
    tab.go_back()
    tab.wait_for_selector("dialog", state="visible")


def test_an_unknown_address_shows_the_defaults(visit, page):
    tab = visit(page, "stage=99&sort=none&class=x&image=-1&at=nowhere")
    wait_for_texts(tab, CARD_NAMES, WORST_FIRST)


def luminances(colours: list[str]) -> np.ndarray:
    """WCAG's relative luminance of CSS colours, by 0.05 above it, as contrasts need it."""
    shares = []
    for colour in colours:
        scale = 1 if "srgb" in colour else 255
        red_green_blue = re.findall(r"[\d.]+", colour)[:3]
        shares.append([float(number) / scale for number in red_green_blue])
    linear = ((np.array(shares) + 0.055) / 1.055) ** 2.4
    return linear @ [0.2126, 0.7152, 0.0722] + 0.05


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_every_shade_of_the_confusion(visit, page, scheme):
    cells = visit(page, color_scheme=scheme).locator("details[open] .matrix td")
    style = "(cells) => cells.map((cell) => getComputedStyle(cell).{})"
    text = luminances(cells.evaluate_all(style.format("color")))
    ground = luminances(cells.evaluate_all(style.format("backgroundColor")))
    contrast = np.maximum(text, ground) / np.minimum(text, ground)
    assert contrast.min() >= 4.5  # WCAG's
    assert (text > ground).all() == (scheme == "dark")
    assert cells.all_text_contents() == ["77", "19", "4", "8", "92", "", "50", "", "50"]


def test_a_phone_need_not_scroll_sideways(visit, page):
    tab = visit(page, "image=1", viewport={"width": 380, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380
    assert tab.locator("#large").bounding_box()["width"] > 300
    assert tab.locator("#gallery").bounding_box()["width"] > 300


def test_every_control_has_a_name_and_keys_reach_it(visit, page):
    tab = visit(page, "image=1", viewport={"width": 380, "height": 800})
    controls = tab.locator("button, select, a, summary")
    name = "control.ariaLabel || control.labels?.length || control.textContent.trim()"
    has_name = controls.evaluate_all(f"(all) => all.map((control) => Boolean({name}))")
    assert len(has_name) > 20
    assert all(has_name)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "BUTTON"


def test_images_without_masks_show_shares_and_suspicions(visit, tmp_path):
    root = make_data(tmp_path, masks="elsewhere")
    run_dir = make_run(root, root / "run", evaluate=False)
    tab = visit(make_page(run_dir, flags=("--dataset_root", root)))
    assert tab.locator("#scores table, .matrix").count() == 0
    wait_for_texts(tab, "#classes small", ["share of pixels"] * 3)
    shares = read_numbers(tab, "#classes tbody tr:not(:first-child) td:last-child")
    cat = (2 * 33.3 + 100) / 6  # two squares, and b3's label, which fills the image
    markup = 2 * 33.3 / 6  # b4's label is empty
    assert shares == pytest.approx([cat, markup], abs=0.2)
    wait_for_texts(tab, CARD_NAMES, SUSPICIOUS_FIRST)
    assert "mIoU" not in tab.locator("#gallery").text_content()


def test_two_runs_show_what_changed(visit, data, tmp_path):
    one = make_run(data, tmp_path / "one")
    other = make_run(data, tmp_path / "other", shift=2)
    page = make_page(one, other, folder="report_other")
    assert len(CURVE_POINTS.findall(page.read_text())) == 2
    tab = visit(page)
    wait_for_texts(tab, "#classes small", ["change"] * 3 + ["IoU"] * 6)
    changes = tab.locator("#classes tbody td:nth-child(4)").all_text_contents()
    assert all(text.startswith("+") for text in changes)  # the other's labels are nearer the truth
    wait_for_texts(tab, f"{CARD_NAMES} >> nth=0", ["b2"])
    assert "% changed" in tab.locator(".card").first.text_content()


def repeat_first_image(page: Path, folder: Path, times: int) -> Path:
    """A copy of a page that shows its first image so many times."""
    shutil.copytree(page.parent, folder)
    data = read_data(page)
    first_image = data["images"][0]
    data["images"] = [first_image | {"name": f"image {i}"} for i in range(times)]
    text = json.dumps(data).replace("<", "\\u003c")
    start, end = SCRIPT_DATA.search(page.read_text()).span(1)
    html = page.read_text()
    (folder / "index.html").write_text(html[:start] + text + html[end:])
    return folder / "index.html"


def test_five_thousand_images_open_and_scroll(visit, page, tmp_path):
    many = repeat_first_image(page, tmp_path / "report", times=5000)
    began = time.monotonic()
    tab = visit(many, "at=images")
    tab.wait_for_function("document.querySelector('.card img').naturalWidth > 0")
    print(f"the first of 5,000 images after {time.monotonic() - began:.2f} s")
    for _ in range(3):
        count = tab.locator(".card").count()
        assert count < 1000
        tab.mouse.wheel(0, 100_000)
        tab.wait_for_function(f"document.querySelectorAll('.card').length > {count}")
    wait_for_texts(tab, "#count", ["5000 images"])
    assert time.monotonic() - began < 30
