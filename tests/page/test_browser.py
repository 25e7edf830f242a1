"""The page in a real browser: it makes, shows, cancels and plays videos, also by keyboard alone.

Needs Chromium, as of Debian (apt install chromium) or Chrome; without one, these tests are skipped.
"""

import json
import re
import shutil
import time

import numpy as np
import pytest

from snapvideo_jax.errors import StorageError
from snapvideo_jax.files import video
from tests.launch.test_page import command
from tests.page import served

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
expect = playwright.expect
pytestmark = pytest.mark.slow

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
SLOW = 120_000  # milliseconds to compile on a loaded machine


@pytest.fixture(scope="module")
def browser():
    """A headless browser; skips without one."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome: apt install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address; no tab may ask another host, log an error or raise one."""
    contexts, wrong = [], []

    def open_tab(url, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        origin = re.match(r"http://[^/]+/", url)[0]
        context.on("request", lambda r: r.url.startswith(origin) or wrong.append(r.url))
        context.on("weberror", lambda e: wrong.append(str(e.error)))
        context.on("console", lambda m: m.type == "error" and wrong.append(m.text))
        tab = context.new_page()
        tab.goto(url)
        expect(tab.locator("#model")).to_contain_text("frames of")
        return tab

    open_tab.wrong = wrong
    yield open_tab
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def client(tmp_path):
    """A page whose videos take as long as the test wants, and no model.

    Tests name it before `visit`, so that their tabs close before it does.
    """
    with served.page(tmp_path) as client:
        client.url = f"http://127.0.0.1:{client.port}/"
        yield client


def button(tab, name):
    return tab.get_by_role("button", name=name, exact=True)


def field(tab, label):
    return tab.get_by_label(label, exact=True).and_(tab.locator("input:visible"))


def pixels(tab):
    """What the player shows: uint8 [H, W, 3]."""
    values, height, width = tab.evaluate(
        """() => {
          const video = document.querySelector("#video");
          const [width, height] = [video.videoWidth, video.videoHeight];
          const canvas = Object.assign(document.createElement("canvas"), { width, height });
          const drawing = canvas.getContext("2d");
          drawing.drawImage(video, 0, 0);
          return [[...drawing.getImageData(0, 0, width, height).data], height, width];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The real command with the model that the repository ships."""
    out = tmp_path_factory.mktemp("gallery")
    with command(f"--out={out}", seconds=1800) as (_, port):
        yield f"http://127.0.0.1:{port}/", out


def test_the_shipped_model_makes_a_video_that_plays(shipped, visit):
    url, out = shipped
    tab = visit(url)
    field(tab, "Prompt").fill("a red circle moves right quickly and yodels")
    field(tab, "Steps").fill("150")
    field(tab, "Frame rate").fill("7")
    button(tab, "Make the video").click()
    status = tab.locator("#status")
    expect(status).to_contain_text("the model is compiled first")
    expect(tab.locator("#notes")).to_contain_text("has the words and, yodels.")
    expect(tab.locator("#notes")).to_contain_text("and not 7.")
    expect(status).to_have_text(re.compile(r"Call \d+ of 299 of the model, about \d"), timeout=SLOW)
    first = tab.locator("#progress").evaluate("bar => bar.value")
    expect(tab.locator("#progress")).to_have_js_property("max", 299)
    tab.wait_for_function("before => document.querySelector('#progress').value > before", arg=first)
    expect(status).to_have_text(re.compile(r"Ready after \d"), timeout=SLOW)
    expect(tab.locator("#news")).to_have_text(re.compile(r"Ready after \d"))  # is read aloud

    tab.wait_for_function("() => document.querySelector('#video').readyState === 4")
    tab.wait_for_function("() => document.querySelector('#video').currentTime > 0.3")  # it plays
    assert tab.locator("#video").evaluate("v => v.duration") == pytest.approx(8 / 7, abs=0.01)
    frames = video.read_video(out / "00000" / "00000.mp4")
    tab.locator("#video").evaluate("v => { v.pause(); v.currentTime = 0.5 / 7; }")
    tab.wait_for_function("() => !document.querySelector('#video').seeking")
    assert np.abs(pixels(tab).astype(int) - frames[0]).mean() < 4  # in the right colors, too

    expect(tab.locator("#command")).to_contain_text("python -m launch.sample")
    expect(tab.locator("#command")).to_contain_text("--checkpoint=models/shapes")
    tab.get_by_text("All settings as JSON").click()
    written = json.loads((out / "00000" / "samples.json").read_text())
    assert json.loads(tab.locator("#settings").inner_text()) == written
    expect(tab.locator(".video[aria-current=true]")).to_have_count(1)


def test_the_shipped_model_stops_within_a_second(shipped, visit):
    url, out = shipped
    before = len(list(out.glob("0*")))
    tab = visit(url)
    field(tab, "Steps").fill("50000")
    button(tab, "Make the video").click()
    expect(tab.locator("#status")).to_contain_text("of 99999 of the model", timeout=SLOW)
    start = time.monotonic()
    button(tab, "Cancel").click()
    expect(tab.locator("#status")).to_have_text(re.compile("Cancelled after"))
    assert time.monotonic() - start < 2  # on a loaded machine; the page looks every 0.3 s
    expect(button(tab, "Make the video")).to_be_focused()
    assert len(list(out.glob("0*"))) == before


def start(tab, client, steps=3, **fields):
    for label, value in {"Steps": steps, **fields}.items():
        field(tab, label).fill(str(value))
    button(tab, "Make the video").click()
    expect(button(tab, "Cancel")).to_be_visible()


def make(tab, client, steps=1, **fields):
    start(tab, client, steps, **fields)
    client.maker.calls.release(steps)
    expect(tab.locator("#status")).to_contain_text("Ready after")


def test_progress_is_shown_in_every_tab_and_after_a_reload(client, visit):
    tab = visit(client.url)
    start(tab, client, 4)
    client.maker.calls.release(2)
    text = re.compile(r"^Call 2 of 4 of the model, about \d+ s left$")
    expect(tab.locator("#status")).to_have_text(text)
    expect(tab.locator("#news")).to_have_text("50 percent")
    tab.reload()
    expect(tab.locator("#status")).to_have_text(text)
    other = visit(client.url)
    expect(other.locator("#status")).to_have_text(text)
    client.maker.calls.release(2)
    for each in (tab, other):
        expect(each.locator("#shown-prompt")).to_have_text("a red circle")


def test_a_second_video_waits_for_the_first(client, visit):
    tab, other = visit(client.url), visit(client.url)
    start(tab, client)
    button(other, "Make the video").click()
    expect(other.locator("#failure")).to_contain_text("Another video is being made")
    expect(button(other, "Make the video")).to_have_attribute("aria-disabled", "true")
    button(other, "Cancel").click()
    client.maker.calls.release()
    for each in (tab, other):
        expect(each.locator("#status")).to_contain_text("Cancelled after")
    assert visit.wrong and all("409 (Conflict)" in line for line in visit.wrong)
    visit.wrong.clear()


def test_wrong_values_are_said_beside_their_fields(client, visit):
    tab = visit(client.url)
    wrong = {"Prompt": " ", "Seed": "-1", "Steps": "many", "Guidance": "nan", "Frame rate": "1,5"}
    for label, value in wrong.items():
        field(tab, label).fill(value)
    button(tab, "Make the video").click()
    says = {
        "prompt": "This must say what to show.",
        "seed": "This must be a whole number from 0 to 2,147,483,647.",
        "steps": "This must be a whole number from 1 to 100,000.",
        "guidance": "This must be a number from 0 to 1,000.",
        "frame_rate": "This must be a number from 0.001 to 1,000, or 0.",
    }
    for name, text in says.items():
        expect(tab.locator(f"#{name}-problem")).to_have_text(text)
        expect(tab.locator(f"#{name}")).to_have_attribute("aria-invalid", "true")
        expect(tab.locator(f"#{name}")).to_have_accessible_description(re.compile(re.escape(text)))
    expect(field(tab, "Prompt")).to_be_focused()
    assert client.get("/api/job")[1] is None
    visit.wrong.clear()  # Chromium logs an answer of 400

    right = {"Prompt": "a fox", "Seed": "3", "Guidance": "0", "Frame rate": "8"}
    make(tab, client, **right)
    expect(tab.locator("[aria-invalid=true]")).to_have_count(0)
    expect(tab.locator("#shown-values")).to_have_text(
        "seed 3 · steps 1 · guidance 0 · 8 frames a second"
    )


def test_a_prompt_is_text_and_never_markup(client, visit):
    prompt = '<img src=x onerror=alert(1)> & "quotes" </pre><script>alert(2)</script>'
    tab = visit(client.url)
    make(tab, client, Prompt=prompt)
    expect(tab.locator("#shown-prompt")).to_have_text(prompt)
    expect(tab.locator(".video span").first).to_have_text(prompt)
    assert tab.locator("img, pre script").count() == 0


def test_a_video_that_fails_and_a_program_that_has_ended_are_said(client, visit):
    tab = visit(client.url)
    client.maker.error = StorageError("cannot write x: No space left on device")
    start(tab, client)
    client.maker.calls.release()
    expect(tab.locator("#failure")).to_have_text("Cannot write x: No space left on device.")
    client.maker.error = None
    start(tab, client)
    tab.route("**/api/job", lambda route: route.abort())  # as if nothing listened any more
    expect(tab.locator("#failure")).to_contain_text("does not answer")
    expect(button(tab, "Make the video")).to_have_attribute("aria-disabled", "false")
    client.maker.calls.release(3)
    visit.wrong.clear()  # Chromium logs a request without an answer


def test_the_gallery_shows_plays_and_gives_back_the_settings(client, visit):
    tab = visit(client.url)
    make(tab, client, Prompt="one", Seed=1)
    make(tab, client, Prompt="two", Seed=2, Guidance=4)
    expect(tab.locator(".video")).to_have_count(2)
    card = tab.get_by_role("button", name=re.compile("^one"))
    card.hover()
    tab.wait_for_function("() => !document.querySelectorAll('.video video')[1].paused")
    card.click()
    expect(tab.locator("#shown-prompt")).to_have_text("one")
    expect(tab.locator("#video")).to_have_attribute("src", "/videos/00000.mp4")
    button(tab, "Use these settings").click()
    expect(field(tab, "Prompt")).to_have_value("one")
    expect(field(tab, "Guidance")).to_have_value("1.5")
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "00000.mp4"


def focused(tab):
    """The focused element's id or text, and whether one sees that it has the focus."""
    return tab.evaluate(
        """() => {
          const element = document.activeElement;
          const { outlineStyle, outlineWidth } = getComputedStyle(element);
          const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
          return [element.id || element.textContent.trim().slice(0, 20), seen];
        }"""
    )


def test_all_of_it_works_by_keyboard_alone(client, visit):
    tab = visit(client.url, permissions=["clipboard-read", "clipboard-write"])
    press = tab.keyboard.press
    press("Tab")
    assert focused(tab) == ["Skip to the prompt", True]
    press("Enter")
    expect(field(tab, "Prompt")).to_be_focused()
    press("Control+a")
    tab.keyboard.type("a green cross")
    order = []
    for _ in range(6):
        press("Tab")
        order.append(focused(tab))
    names = ["seed", "random", "frame_rate", "steps", "guidance", "generate"]
    assert order == [[name, True] for name in names]
    press("Shift+Tab")
    press("Enter")  # in a field: the form is sent
    expect(button(tab, "Cancel")).to_be_visible()
    press("Tab")
    press("Tab")
    assert focused(tab) == ["cancel", True]
    press("Enter")
    client.maker.calls.release()
    expect(tab.locator("#status")).to_contain_text("Cancelled after")
    expect(button(tab, "Make the video")).to_be_focused()
    press("Space")
    client.maker.calls.release(3)
    expect(tab.locator("#status")).to_contain_text("Ready after")

    tab.locator("#reuse").focus()  # past the player's own controls, which are the browser's
    order = []
    for _ in range(5):
        press("Tab")
        order.append(focused(tab))
    texts = ["download", "command", "Copy the command", "All settings as JSON", "Made so far"]
    assert [seen for _, seen in order] == [True] * 5
    assert [name for name, _ in order][:4] == texts[:4] and order[4][0].startswith("a green cross")
    press("Enter")  # on the card in the gallery
    expect(tab.locator("#shown-prompt")).to_be_focused()
    for _ in range(3):
        press("Tab")
    press("Tab")
    assert focused(tab)[0] == "Copy the command"
    press("Enter")
    expect(tab.locator("#news")).to_have_text("Copied.")
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == tab.locator("#command").text_content()
    assert "--prompt='a green cross'" in copied


def test_videos_stand_still_where_a_person_wants_less_motion(client, visit):
    tab = visit(client.url, reduced_motion="reduce")
    make(tab, client)
    tab.wait_for_function("() => document.querySelector('#video').readyState === 4")
    tab.locator(".video").hover()
    tab.wait_for_timeout(300)
    assert tab.evaluate("[...document.querySelectorAll('video')].every((v) => v.paused)")
    moving = visit(client.url)
    moving.wait_for_function("() => !document.querySelector('#video').paused")


CONTRASTS = """() => {
  const luminance = (color) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/[\\d.]+/g).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
  };
  const ratio = (element) => {
    const both = [getComputedStyle(element).color, ground(element)].map(luminance);
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
  return [...document.querySelectorAll("h1, h2, h3, p, label, input, button, pre, a, .hint")].map(
    (element) => [element.id || element.tagName, ratio(element)],
  );
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(client, visit, scheme):
    tab = visit(client.url, color_scheme=scheme)
    make(tab, client)
    tab.evaluate("document.querySelector('#failure').textContent = 'A problem.'")
    grounds = tab.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(")
    assert (int(grounds.split(",")[0]) < 64) == (scheme == "dark")
    ratios = tab.evaluate(CONTRASTS)
    assert len(ratios) > 30
    assert [each for each in ratios if each[1] < 4.5] == []  # WCAG 2.2, AA


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_a_phone_and_a_screen(client, visit, width):
    tab = visit(client.url, viewport={"width": width, "height": 800})
    make(tab, client, Prompt="a" * 200 + " long word")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_every_field_and_button_has_a_name(client, visit):
    tab = visit(client.url)
    make(tab, client)
    tab.locator("details").evaluate("each => { each.open = true; }")
    for element in tab.locator("input, button, progress, video, pre, a").all():
        if element.is_visible() and not element.evaluate("e => e.closest('.video') !== null"):
            expect(element).to_have_accessible_name(re.compile(r"\w+"))
    assert tab.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    ) == (tab.locator("[id]").count())
