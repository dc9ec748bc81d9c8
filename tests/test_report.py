"""The report: what it reads and refuses, and the page in headless Chromium."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from common import call, load_script, rotate
from torch.utils.tensorboard import SummaryWriter

import eval_cam
import eval_seg
from data.images import read_image
from errors import InputError
from tool import cam_file, label_file, visualize
from tool.outputs import write_json

REPORT = load_script("report")
MARKUP = "<img src=x onerror=document.title='owned'></script>"  # the name of a class
CLASSES = ["background", "cat", MARKUP]
NAMES = ["a #1%3f&'", *(f"b{i}" for i in range(5))]
NAME, CARDS, PRESSED = "#name", ".card b", "#layers [aria-pressed=true] kbd"
POINTS, DATA = (
    re.compile('<polyline points="(.*?)"'),
    re.compile('<script type="application/json" id="data">(.*?)</script>'),
)


def make_data(root: Path, masks: str = "masks") -> Path:
    """Six images of 64x48, a class each; the second class is named like markup."""
    for i, name in enumerate(NAMES):
        visualize.save(root / f"images/{name}.jpg", np.full((48, 64, 3), 40 * i, np.uint8))
        label_file.save(root / f"{masks}/{name}.png", truth(i))
    (root / "classes.txt").write_text("\n".join(CLASSES[1:]))
    (root / "tags.csv").write_text(
        "".join(f'"{name}","{CLASSES[1 + i % 2]}"\n' for i, name in enumerate(NAMES))
    )
    return root


def truth(i: int) -> np.ndarray:
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 8:40] = 1 + i % 2
    return mask


def make_run(root: Path, run_dir: Path, shift: int = 4, evaluate: bool = True) -> Path:
    """Maps, and labels that lie the farther from the truth, the later the image is; b4 has none, and b3's label fills it."""
    for i, name in enumerate(NAMES):
        mask, cam = truth(i), (truth(i) > 0)[::8, ::8].astype(np.float32)
        cam_file.save(
            cam_file.path_of(run_dir, name),
            np.array([0, 1 + i % 2]),
            mask.shape,
            *[[np.stack([1 - cam, cam])]] * 2,
        )
        label = {4: np.full_like(mask, 1), 5: np.zeros_like(mask)}.get(
            i, np.roll(mask, shift * i, 1)
        )
        label_file.save(label_file.path_of(run_dir / "seg_label", name), label)
    made = {
        "made_by": "make_cam",
        "maps": ["cam", "is_cam"],
        "class_names": CLASSES,
        "scales": [1.0, 0.5],
    }
    write_json(run_dir / "cam/settings.json", made)
    write_json(
        run_dir / "seg_label/settings.json",
        {"made_by": "make_seg_labels", "refine": "crf", "cam": made},
    )
    with SummaryWriter(run_dir / "tensorboard/seg") as logger:
        for step in range(1000):
            logger.add_scalar("train/loss", 1 / (step + 1) if step else float("nan"), step)
    for script in (eval_cam, eval_seg) if evaluate else ():
        call(
            script.main,
            "--dataset",
            "folder",
            "--dataset_root",
            root,
            "--run_dir",
            run_dir,
            "--num_workers",
            0,
        )
    return run_dir


def page_of(*run_dirs: Path, flags: tuple = (), folder: str = "report") -> Path:
    call(REPORT.main, "--run_dir", *run_dirs, "--num_workers", 0, *flags)
    return run_dirs[0] / folder / "index.html"


def data_of(page: Path) -> dict:
    return json.loads(DATA.search(page.read_text())[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Path:
    return page_of(make_run(data, tmp_path_factory.mktemp("run")))


def test_an_image_has_its_scores_tags_and_files_and_curves_are_thin(page):
    data = data_of(page)
    assert data["classes"] == CLASSES and [stage["title"] for stage in data["stages"]] == [
        "general CAM",
        "IS-CAM",
        "CRF labels",
    ]
    assert [(image["name"], image["tags"]) for image in data["images"]] == [
        (name, [1 + i % 2]) for i, name in enumerate(NAMES)
    ]
    scores = [image["stages"]["2"]["miou"] for image in data["images"]]
    assert [scores[0], scores[1], scores[5]] == pytest.approx(
        [100, 100 * np.mean([28 / 36, 1920 / 2176]), 100 / 3], abs=0.06
    )
    assert data["images"][0]["truth"][0][:2] == [1, 33.3]  # class and share
    assert {path.name for path in page.parent.glob("1*")} == {
        "1.jpg",
        "1_0.png",
        "1_0_2.png",
        "1_1.png",
        "1_1_2.png",
        "1_2.png",
        "1_t.png",
    }
    (points,) = POINTS.findall(page.read_text())  # of the loss of 1,000 steps, once no number
    assert 200 < len(points.split()) <= 300 and float(points.split()[-1].split(",")[0]) > 99


def test_a_report_is_written_anew_but_never_over_other_files(data, tmp_path):
    page = page_of(make_run(data, tmp_path / "run"))
    content = page.read_text()
    page_of(tmp_path / "run", flags=("--max_images", 3))
    assert [image["name"] for image in data_of(page)["images"]] == NAMES[::2] and not (
        page.parent / "3.jpg"
    ).exists()
    assert page_of(tmp_path / "run").read_text() == content
    (page.parent / "settings.json").unlink()
    with pytest.raises(InputError, match="report"):
        page_of(tmp_path / "run")
    assert page.read_text() == content


def test_what_cannot_be_reported_is_said(data, tmp_path):
    run_dir = make_run(data, tmp_path / "run", evaluate=False)
    other = make_data(tmp_path / "other")
    (other / "classes.txt").write_text("dog")
    for folder, *flags in (
        (run_dir,),
        (tmp_path / "none", "--dataset_root", data),
        (run_dir, "--dataset_root", other),
    ):
        with pytest.raises(InputError, match=folder.name):
            page_of(folder, flags=flags)
    (run_dir / "eval_cam.json").write_text("{")
    with pytest.raises(InputError, match=r"eval_cam\.json"):
        page_of(run_dir)
    assert not (run_dir / "report").exists() and not (tmp_path / "none").exists()


def test_the_same_name_in_another_dataset_is_another_image_and_all_stand_upright(data, tmp_path):
    run_dir, other = make_run(data, tmp_path / "run"), make_data(tmp_path / "other")
    rotate(other / "images/b0.jpg", tmp_path / "twin.jpg")
    shutil.copytree(run_dir / "seg_label", run_dir / "seg_pred")
    write_json(run_dir / "seg_pred/settings.json", {"made_by": "infer_seg", "class_names": CLASSES})
    flags = (
        "--dataset",
        "folder",
        "--dataset_root",
        other,
        "--run_dir",
        run_dir,
        "--label_dir",
        run_dir / "seg_pred",
        "--num_workers",
        0,
    )
    call(eval_seg.main, *flags)
    page = page_of(run_dir)
    assert [list(image["stages"]) for image in data_of(page)["images"]] == [["0", "1", "2"]] * 6 + [
        ["3"]
    ] * 6
    assert (
        read_image(page.parent / "7.jpg").shape
        == read_image(page.parent / "7_3.png").shape
        == (64, 48, 3)
    )


@pytest.fixture(scope="module")
def browser():
    if not shutil.which("chromium"):
        pytest.skip("there is no chromium (Debian: apt install chromium)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="there is no playwright (pip install playwright)"
    )
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a page at an address; errors in its console, missing files and requests of others fail the test."""
    problems, contexts = [], []

    def visit(page: Path, address: str = "", **options):
        contexts.append(
            browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | options))
        )
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("requestfailed", lambda request: problems.append(request.url))
        tab.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
            ),
        )
        tab.goto(f"{page.as_uri()}#{address}")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def soon(tab, selector: str, wanted: list[str]) -> None:
    """Wait until the elements have these texts."""
    from playwright.sync_api import expect

    expect(tab.locator(selector)).to_have_text(wanted, timeout=20_000)


def test_worst_images_come_first_and_names_are_text(visit, page):
    tab = visit(page, "image=1")
    soon(tab, CARDS, ["b3", "b4", "b2", "b1", "b0", NAMES[0]])
    soon(tab, "#classes tbody a", CLASSES)
    soon(tab, "#large .stack span", [MARKUP])
    assert (
        MARKUP in tab.locator("#facts").text_content() and tab.locator("#scores .bar").count() == 3
    )
    tab.get_by_role("button", name="close").click()
    tab.locator("#gallery").scroll_into_view_if_needed()
    tab.wait_for_function(
        "[...document.querySelectorAll('.card img')].every((image) => image.complete && image.naturalWidth)"
    )
    assert tab.locator("[onerror]").count() == 0 and "owned" not in tab.title()


def test_classes_sort_by_a_column(visit, page):
    tab = visit(page)
    head = tab.locator("#classes th").nth(3)
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.get_by_role("button").click()
        values = [
            float(text)
            for text in tab.locator("#classes tbody td:nth-child(4)").all_text_contents()
        ]
        assert head.get_attribute("aria-sort") == order and values == sorted(
            values, key=lambda value: sign * value
        )
    assert tab.locator("[aria-sort=none]").count() == 2


def test_the_gallery_is_filtered_and_sorted(visit, page):
    tab = visit(page)
    tab.get_by_label("Class").select_option(label=MARKUP)
    soon(tab, CARDS, ["b4", "b2", "b0"])
    tab.locator("#classes tbody a").nth(1).click()  # b3's label is a cat that fills the image
    soon(tab, CARDS, ["b3", "b1", NAMES[0]])
    tab.get_by_label("Class").select_option("-1")
    tab.get_by_label("Sort by").select_option("most suspicious")
    soon(tab, CARDS, ["b3", "b4", *NAMES[:4]])
    soon(tab, ".card mark", ["fills the image", f"no {MARKUP}"])
    tab.get_by_label("Sort by").select_option("disagreement of stages")
    soon(tab, f"{CARDS} >> nth=-1", [NAMES[0]])
    tab.locator("#stage").select_option(label="IS-CAM")
    tab.wait_for_selector(".card img[src$='_1.png']")


def test_an_image_opens_and_keys_toggle_layers_and_move_on(visit, page):
    tab = visit(page)
    tab.locator(".card").filter(has_text="b2").click()
    soon(tab, NAME, ["b2"])
    assert tab.locator("#layers button").count() == 6  # truth, three masks, a heat map of each kind
    soon(tab, PRESSED, ["4"])
    for key, wanted in ("1", "14"), ("6", "146"), ("4", "16"), ("9", "16"), ("0", ""), ("2", "2"):
        tab.keyboard.press(key)
        soon(tab, PRESSED, [*wanted])
        assert tab.locator("#large img").count() == 1 + len(wanted)
    for key, wanted in (
        ("Right", "b1"),
        ("Left", "b2"),
        ("Left", "b4"),
        ("Left", "b3"),
        ("Left", "b3"),
    ):
        tab.keyboard.press(f"Arrow{key}")
        soon(tab, NAME, [wanted])
    soon(tab, PRESSED, ["2"])
    tab.keyboard.press("Escape")
    tab.wait_for_url(re.compile("(?!.*image)"))


def test_the_address_keeps_the_view(visit, page):
    tab = visit(page, "stage=1&sort=most+suspicious&class=2&image=3&layers=t+1_2")
    for _ in range(2):
        soon(tab, NAME, ["b2"])
        soon(tab, PRESSED, ["1", "6"])
        assert [tab.locator(f"#{name}").input_value() for name in ("stage", "sort", "class")] == [
            "1",
            "most suspicious",
            "2",
        ]
        tab.reload()
    tab.get_by_role("button", name="close").click()
    tab.wait_for_selector("dialog", state="hidden")
    tab.go_back()
    tab.wait_for_selector("dialog", state="visible")
    soon(
        visit(page, "stage=99&sort=none&class=x&image=-1&at=nowhere"),
        CARDS,
        ["b3", "b4", "b2", "b1", "b0", NAMES[0]],
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_every_shade_of_the_confusion(visit, page, scheme):
    cells = visit(page, color_scheme=scheme).locator("details[open] .matrix td")
    colours = cells.evaluate_all(
        "(cells) => cells.flatMap((cell) => [getComputedStyle(cell).color, getComputedStyle(cell).backgroundColor])"
    )
    shares = [
        [float(number) / (1 if "srgb" in one else 255) for number in re.findall(r"[\d.]+", one)[:3]]
        for one in colours
    ]
    text, ground = (
        np.dot(((np.array(shares) + 0.055) / 1.055) ** 2.4, [0.2126, 0.7152, 0.0722])
        .reshape(-1, 2)
        .T
        + 0.05
    )
    assert (np.maximum(text, ground) / np.minimum(text, ground)).min() >= 4.5  # WCAG's contrast
    assert (text > ground).all() == (scheme == "dark")
    assert cells.all_text_contents() == ["77", "19", "4", "8", "92", "", "50", "", "50"]


def test_a_phone_need_not_scroll_sideways_and_every_control_has_a_name(visit, page):
    tab = visit(page, "image=1", viewport={"width": 380, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 380
    assert all(tab.locator(area).bounding_box()["width"] > 300 for area in ("#large", "#gallery"))
    has_name = "(all) => all.map((one) => Boolean(one.ariaLabel || one.labels?.length || one.textContent.trim()))"
    assert len(
        named := tab.locator("button, select, a, summary").evaluate_all(has_name)
    ) > 20 and all(named)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "BUTTON"


def test_images_without_masks_show_shares_and_suspicions(visit, tmp_path):
    root = make_data(tmp_path, masks="elsewhere")
    tab = visit(
        page_of(make_run(root, root / "run", evaluate=False), flags=("--dataset_root", root))
    )
    assert tab.locator("#scores table, .matrix").count() == 0
    soon(tab, "#classes small", ["share of pixels"] * 3)
    shares = [
        float(text)
        for text in tab.locator("#classes tbody tr td:last-child").all_text_contents()[1:]
    ]
    assert shares == pytest.approx([(2 * 33.3 + 100) / 6, 2 * 33.3 / 6], abs=0.2)
    soon(tab, CARDS, ["b3", "b4", *NAMES[:4]])
    assert "mIoU" not in tab.locator("#gallery").text_content()


def test_two_runs_show_what_changed(visit, data, tmp_path):
    page = page_of(
        make_run(data, tmp_path / "one"),
        make_run(data, tmp_path / "other", shift=2),
        folder="report_other",
    )
    tab = visit(page)
    soon(tab, "#classes small", ["change"] * 3 + ["IoU"] * 6)
    changes = tab.locator(
        "#classes tbody td:nth-child(4)"
    ).all_text_contents()  # the other's labels are nearer to the truth
    assert (
        all(text.startswith("+") for text in changes) and len(POINTS.findall(page.read_text())) == 2
    )
    soon(tab, f"{CARDS} >> nth=0", ["b2"])
    assert "% changed" in tab.locator(".card").first.text_content()


def test_five_thousand_images_open_and_scroll(visit, page, tmp_path):
    folder, data = shutil.copytree(page.parent, tmp_path / "report"), data_of(page)
    data["images"] = [data["images"][0] | {"name": f"image {i}"} for i in range(5000)]
    many = json.dumps(data).replace("<", "\\u003c")
    (folder / "index.html").write_text(
        DATA.sub(lambda found: found[0].replace(found[1], many), page.read_text())
    )
    began = time.monotonic()
    tab = visit(folder / "index.html", "at=images")
    tab.wait_for_function("document.querySelector('.card img').naturalWidth > 0")
    print(f"the first of 5,000 images after {time.monotonic() - began:.2f} s")
    for _ in range(3):
        before = tab.locator(".card").count()
        assert before < 1000
        tab.mouse.wheel(0, 100_000)
        tab.wait_for_function(f"document.querySelectorAll('.card').length > {before}")
    soon(tab, "#count", ["5000 images"])
    assert time.monotonic() - began < 30
