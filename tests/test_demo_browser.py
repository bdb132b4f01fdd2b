"""The demo as a person sees it: a real browser without a network, driven by Playwright."""

import csv
import io
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from cxu import table
from cxu.anatomy import HEART
from cxu.codec import parse_landmarks
from cxu.demo.serve import ServeOptions, serving
from cxu.model.weight_source import load
from cxu.predict_run import predict_images
from predict_helpers import write_film

pytest.importorskip("gradio", reason="the demo needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")

CHROMIUM = os.environ.get("CXU_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: install it, or name its executable in CXU_CHROMIUM"
)
# no name is resolved but this machine's: what the page needs must come from the server
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def running():
    with serving(load("bundled"), torch.device("cpu"), ServeOptions(port=0, max_mb=1)) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # the sandbox cannot be had by root, nor in most containers; the page is ours
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", OFFLINE]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser, running):
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    asked, failed = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto(running.url)
    opened.get_by_role("button", name="Synthetic example").wait_for()
    yield opened
    context.close()
    strangers = [url for url in asked if not url.startswith((running.url, "data:", "blob:"))]
    assert (strangers, failed) == ([], [])


def picture(page):
    return page.locator(".cxu-film img")


def wait_for_another_picture(page, before):
    page.wait_for_function(
        "before => { const image = document.querySelector('.cxu-film img'); return image && image.src !== before }",
        arg=before,
    )
    return picture(page).get_attribute("src")


def open_example(page):
    page.get_by_role("button", name="Synthetic example").click()
    picture(page).wait_for()
    return picture(page).get_attribute("src")


def download(page, name):
    with page.expect_download() as expected:
        page.get_by_role("link", name=f"Download {name}").click()
    saved = expected.value
    return saved.suggested_filename, saved.path().read_bytes()


def numbers(page):
    return json.loads(download(page, "JSON")[1])


def grey_levels(page):
    """Return size and standard deviation of the picture's pixels, as the browser has them."""
    return picture(page).evaluate(
        """async image => {
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const values = context.getImageData(0, 0, canvas.width, canvas.height).data;
          let sum = 0, squares = 0, n = values.length / 4;
          for (let at = 0; at < values.length; at += 4) { sum += values[at]; squares += values[at] ** 2; }
          return [canvas.width, canvas.height, Math.sqrt(squares / n - (sum / n) ** 2)];
        }"""
    )


def test_a_film_is_uploaded_shown_changed_and_downloaded(page, tmp_path):
    path = write_film(tmp_path / "chest.png", size=512, shape_hw=(480, 400))
    page.get_by_label("File upload").set_input_files(path)
    page.get_by_text("chest.png · 400 × 480 px").wait_for()
    width, height, spread = grey_levels(page)
    assert (width, height) == (720, 720)
    assert spread > 20
    assert picture(page).get_attribute("alt").startswith("chest.png with the outlines of both lungs")
    assert re.search(r"Quality: (ok|review|reject)", page.locator(".cxu-flag").inner_text())
    row = predict_images(path, device="cpu")

    first = numbers(page)
    assert (first["settings"]["n_samples"], first["settings"]["noise_sigma"]) == (50, 0)
    np.testing.assert_allclose(first["nodes"]["landmarks_xy"], table.landmarks_of(row)[0], atol=6e-4)
    np.testing.assert_allclose(first["nodes"]["sigma_model_px"], table.list_column(row, "sigma_model_px")[0], atol=6e-4)
    assert page.get_by_role("row", name="heart").inner_text().split()[1] == (
        f"{table.list_column(row, 'sigma_model_px')[0, HEART.nodes].mean():.1f}"
    )

    name, content = download(page, "CSV")
    (line,) = csv.DictReader(io.StringIO(content.decode()))
    assert (name, line["Height"], line["Width"]) == ("chest.csv", "480", "400")
    np.testing.assert_allclose(parse_landmarks(line["Landmarks (Mean)"]), table.landmarks_of(row)[0], atol=6e-3)
    name, content = download(page, "Mask")
    labels = np.asarray(Image.open(io.BytesIO(content)))
    assert (name, labels.shape) == ("chest.labels.png", (480, 400))
    assert {0, 1, 2, 3} & {*np.unique(labels).tolist()}

    before = picture(page).get_attribute("src")
    page.get_by_role("spinbutton", name="Noise sigma").fill("40")
    noisy = wait_for_another_picture(page, before)
    page.get_by_role("slider", name="max-std").press("Home")
    page.get_by_role("row", name="heart").get_by_role("cell", name="no", exact=True).wait_for()
    assert wait_for_another_picture(page, noisy) != before
    page.get_by_text("outermost nodes are not confident").wait_for()
    last = numbers(page)
    assert (last["settings"]["noise_sigma"], last["settings"]["max_std_px"]) == (40, 1)
    assert last["result"]["image_score_px"] > first["result"]["image_score_px"]
    assert not any(last["nodes"]["confident"])


@pytest.mark.slow
def test_parts_are_blacked_out_by_mouse_and_keys_and_brought_back(page):
    plain = open_example(page)
    surface = page.get_by_label("Paint over the film in black")
    box = surface.bounding_box()

    def place(x, y):
        return box["x"] + box["width"] * x / 1024, box["y"] + box["height"] * y / 1024

    page.mouse.move(*place(300, 400))
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(*place(300, 400 + 40 * step))
    page.mouse.up()
    painted = wait_for_another_picture(page, plain)
    (stroke,) = numbers(page)["settings"]["occlusions"]
    assert stroke["radius_px"] == 60
    np.testing.assert_allclose(stroke["points_xy"][0], [300, 400], atol=3)
    np.testing.assert_allclose(stroke["points_xy"][-1], [300, 720], atol=3)

    surface.press("ArrowRight")
    surface.press("Shift+ArrowUp")
    surface.press("Space")
    twice = wait_for_another_picture(page, painted)
    dot = numbers(page)["settings"]["occlusions"][1]
    np.testing.assert_allclose(dot["points_xy"], [[332, 712]], atol=3)

    page.get_by_role("button", name="Undo stroke").click()
    assert wait_for_another_picture(page, twice) == painted
    page.get_by_role("button", name="Clear strokes").click()
    assert wait_for_another_picture(page, painted) == plain


@pytest.mark.slow
def test_sliders_are_reset_and_dragged(page):
    plain = open_example(page)
    noise = page.get_by_role("slider", name="Noise sigma")
    box = noise.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    noisy = wait_for_another_picture(page, plain)
    page.get_by_role("button", name="Reset to default value").first.click()
    page.wait_for_function(
        "plain => document.querySelector('.cxu-film img').src === plain", arg=plain, timeout=PATIENCE_MS
    )
    assert noisy != plain


def test_wrong_files_say_why(page, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "large.png").write_bytes(bytes(3 << 20))
    upload = page.get_by_label("File upload")
    upload.set_input_files(tmp_path / "notes.txt")
    page.get_by_role("alert").filter(has_text="notes.txt is no PNG, JPEG, TIFF or DICOM file").wait_for()
    upload.set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size of 1.0 Mb").wait_for()
    (tmp_path / "sly.png").write_text("${1+1}{{value}}")
    upload.set_input_files(tmp_path / "sly.png")
    page.get_by_role("alert").filter(has_text="it begins with b'${1+1}").wait_for()
    open_example(page)
    assert page.get_by_role("alert").filter(has_text="sly.png").count() == 0


def test_the_page_says_what_it_is_for_and_can_be_used_by_names(page):
    page.get_by_text("Research and education only; not a medical device.").wait_for()
    open_example(page)
    for role, names in {
        "slider": ("Noise sigma", "Samples N", "max-std", "Brush radius"),
        "button": ("Synthetic example", "Undo stroke", "Clear strokes", "Click to upload or drop files"),
        "link": ("Download CSV", "Download Mask", "Download JSON"),
        "columnheader": ("organ", "mean σ", "median σ", "confident", "usable", "area"),
        "rowheader": ("right lung", "left lung", "heart"),
    }.items():
        for name in names:
            assert page.get_by_role(role, name=name).first.is_visible(), (role, name)
    assert page.get_by_role("img", name="Colour scale of node uncertainty").is_visible()
    assert page.locator(".cxu-flag").inner_text().startswith("✓ Quality: ok")


@pytest.mark.slow
def test_a_closed_page_is_forgotten(browser, running):
    def wait_for(count):
        until = time.monotonic() + 30
        while len(running.desk.sessions) != count and time.monotonic() < until:
            time.sleep(0.1)
        assert len(running.desk.sessions) == count

    wait_for(0)
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(running.url)
    open_example(opened)
    wait_for(1)
    context.close()
    wait_for(0)
