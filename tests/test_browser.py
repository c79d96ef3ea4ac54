"""The explorer and the docs in a real browser: Chromium opens them, and sliders that are moved change the pictures."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time

import pytest
import yaml
from conftest import ROOT, free_port
from PIL import Image
from playwright.sync_api import sync_playwright
from test_docs import small_project

from facelab.base.images import astronaut, to_uint8
from facelab.base.names import build
from facelab.degradations.chain import Chain
from facelab.pipeline import site
from facelab.training.models import write_model
from facelab.training.recipes import load_degradations, load_recipes

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium"))), None
)
ARGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
LAB = (
    "jupyter lab nbs --ServerApp.token= --LabApp.news_url=None"
    " --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --allow-root"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium is installed (Debian: apt install chromium): the explorer was not tried in a browser",
)


def wait_until(what, seconds=30):
    "The first truthy value of `what`."
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.03)
    return value


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project for the explorer to live in: what it saves must not land in this one."
    root = tmp_path_factory.mktemp("browser")
    for name in ("dvc.yaml", "params.yaml", "recipes"):
        (root / name).symlink_to(ROOT / name)
    recipe = dict(
        load_recipes(ROOT)["jdsr_gan_x4"],
        name="small",
        label="Small network",
        faces="three faces",
        degradation=load_degradations(ROOT)["jdsr_gan_x4"]["steps"],
        generator=dict(use="networks.srresnet.SRResNet", scale=4, width=8, depth=1),
        critics={},
        call=None,
    )
    write_model(root / "weights" / "small", {"generator": build(recipe["generator"]).state_dict()}, recipe)
    (root / "nbs").mkdir()
    shutil.copy(ROOT / "nbs" / "explore.ipynb", root / "nbs")
    return root


@pytest.fixture(scope="module")
def servers(project):
    "Voila, as `make explore` starts it, and JupyterLab: name -> port."
    explore = re.search(r"^explore:.*\n\t(voila .*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FACELAB_WEIGHTS": str(project / "weights"),
        **{f"JUPYTER{k}_DIR": str(project) for k in ("_CONFIG", "LAB_SETTINGS", "LAB_WORKSPACES")},
    }
    started, ports = [], {}
    try:
        for name, command in (("voila", explore), ("lab", LAB)):
            ports[name], log = free_port(), open(project / f"{name}.log", "w")
            started.append(
                subprocess.Popen(
                    [*shlex.split(command), "--no-browser", f"--port={ports[name]}"],
                    cwd=project,
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        yield ports
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def browser(servers):
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


def open_page(browser, port, path=""):
    "A page, and a list of what goes wrong on it: errors of the console, exceptions, requests to other machines."
    wait_until(lambda: listening(port))
    page, wrong = browser.new_page(viewport=dict(width=1280, height=1000)), []
    # Voila's page template loads an icon font from a content network. The explorer does not need it, and the test
    # needs no network.
    page.route("**/@fortawesome/**", lambda route: route.fulfill(body="", content_type="text/css"))

    def console(message):
        if message.type == "error":
            wrong.append(f"{message.text} ({message.location.get('url')})")

    def request(request):
        own = re.match(rf"(https?|wss?)://127\.0\.0\.1:{port}/|data:|blob:", request.url)
        if not own and "@fortawesome" not in request.url:
            wrong.append(request.url)

    page.on("console", console)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", request)
    page.goto(f"http://127.0.0.1:{port}/{path}", timeout=60_000)
    return page, wrong


def pixels(page, name="degraded"):
    "The picture under this caption, as the browser decoded it."
    return page.evaluate(
        """name => {
        const slot = [...document.querySelectorAll('.fl-slot')].find(s => s.querySelector('b').textContent == name);
        const image = slot && slot.querySelector('img');
        if (!image || !image.complete || !image.naturalWidth) return null;
        const canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        canvas.getContext('2d').drawImage(image, 0, 0);
        return canvas.toDataURL();
    }""",
        name,
    )


def choose(page, preset):
    label = f"{preset}: {load_degradations(ROOT)[preset]['label']}"
    page.locator(".fl-controls select").filter(has_text=label).first.select_option(label=label)


def recipe(page):
    return Chain(
        yaml.safe_load(page.locator(".fl-code textarea").input_value() or "{degradations: {x: {steps: []}}}")[
            "degradations"
        ].popitem()[1]["steps"]
    )


def push(page, parameter, key="ArrowRight", handle=0):
    "Move a slider by keyboard; returns once the degraded picture has changed."
    before = pixels(page)
    page.locator(".fl-control").filter(has=page.locator(f"b:text-is('{parameter}')")).locator(".noUi-handle").nth(
        handle
    ).focus()
    page.keyboard.press(key)
    return wait_until(lambda: (now := pixels(page)) and now != before and now)


@pytest.fixture(scope="module")
def voila(browser, servers):
    page, wrong = open_page(browser, servers["voila"])
    page.wait_for_selector(".fl-picture", timeout=60_000)
    wait_until(lambda: pixels(page))
    yield page, wrong
    page.close()


def test_the_page_shows_the_preset_untouched(voila):
    page, wrong = voila
    page.get_by_role("button", name="Copy as recipe").click()
    # the browser would move a slider that is between two steps, and the recipe with it
    for preset in ("heavy_rain_x4", "sr_deblur_gan", "jdsr_gan_x4"):
        choose(page, preset)
        chain = Chain(load_degradations(ROOT)[preset]["steps"])
        wait_until(lambda: recipe(page) == chain)
        wait_until(lambda: page.locator(".fl-math mjx-container").count() >= 2)
        page.wait_for_timeout(300)
        assert recipe(page) == chain
    assert page.locator(".fl-error").count() == 0 and wrong == []


def test_sliders_move_by_keyboard_and_pictures_follow(voila):
    page, wrong = voila
    choose(page, "heavy_rain_x4")
    wait_until(lambda: pixels(page, "S"))
    rain = pixels(page)
    brighter = push(page, "light", "ArrowRight", handle=1)
    assert (
        brighter != rain
        and recipe(page).steps[1].light[1]
        > load_degradations(ROOT)["heavy_rain_x4"]["steps"][1].get("light", (0, 0.95))[1] - 1e-9
    )
    assert push(page, "seed") != brighter
    face = pixels(page, "face")
    push(page, "face")
    assert pixels(page, "face") != face and wrong == []


def test_a_trained_model_restores_beside_the_degraded_face_and_is_named(voila):
    page, wrong = voila
    choose(page, "jdsr_gan_x4")
    page.get_by_role("button", name="Small network").wait_for()
    page.get_by_text("yours) was trained for this chain, on three faces").wait_for()
    page.get_by_role("button", name="CBD+DRN, x4").press("Space")  # which ships, and was trained for this chain, too
    wait_until(lambda: page.get_by_text("shipped) was trained for this chain").count() == 0)
    before = wait_until(lambda: pixels(page, "restored"))
    push(page, "seed")
    wait_until(lambda: (now := pixels(page, "restored")) and now != before)
    page.get_by_role("button", name="Small network").press("Space")
    wait_until(lambda: pixels(page, "restored") is None)
    page.get_by_role("button", name="Small network").press("Enter")
    wait_until(lambda: pixels(page, "restored"))
    assert wrong == []


CONTROLS = (
    ".fl-explorer :is(button, select, textarea, input, [role=slider], [role=textbox], .jupyter-widget-Collapse-header)"
)
NAME = (
    "e => (e.getAttribute('aria-label') || [...e.labels || []].map(l => l.textContent).join() || e.textContent).trim()"
)


def test_tab_reaches_every_control_in_the_order_of_the_page_and_shows_where_it_is(voila):
    page, wrong = voila
    choose(page, "jdsr_gan_x4")
    wait_until(lambda: len(recipe(page).steps) == 2)
    page.get_by_role("checkbox", name="random").uncheck()  # which makes the fields of a colour controls, too

    def numbered():
        "The names of all controls, each numbered, once half a second goes by in which the page makes none anew."
        shown = f"""const shown = [...document.querySelectorAll("{CONTROLS}")]
            .filter(e => !e.disabled && e.getClientRects().length);"""
        names = page.evaluate(f"""() => {{
            document.querySelectorAll("[data-number]").forEach(e => delete e.dataset.number);
            {shown}
            shown.forEach((e, k) => e.dataset.number = k);
            return shown.map({NAME});
        }}""")
        page.wait_for_timeout(500)
        order = page.evaluate(f"() => {{ {shown} return shown.map(e => e.dataset.number); }}")
        return names if order == [str(k) for k in range(len(names))] else None

    there = wait_until(numbered)
    assert len(there) > 35 and all(there), there
    page.evaluate(
        "() => { document.activeElement.blur(); getSelection().removeAllRanges();"
        " document.querySelector('[data-number=\"0\"]').focus(); }"
    )
    seen = []
    for _ in there:
        seen.append(
            page.evaluate(
                "() => { const e = document.activeElement, s = getComputedStyle(e); return [+e.dataset.number,"
                " s.outlineStyle, parseFloat(s.outlineWidth)]; }"
            )
        )
        page.keyboard.press("Tab")
    assert [number for number, *_ in seen] == list(range(len(there)))
    assert [there[number] for number, style, width in seen[1:] if style == "none" or width < 2] == []
    assert not page.evaluate("() => document.activeElement.closest('.fl-explorer')")  # Tab leads out again
    page.get_by_role("checkbox", name="random").check()
    assert wrong == []


def test_steps_are_opened_and_moved_by_keyboard_and_the_focus_stays(voila):
    page, wrong = voila
    choose(page, "jdsr_gan_x4")
    wait_until(lambda: len(recipe(page).steps) == 2)
    heads = page.locator(".jupyter-widget-Collapse-header")
    for key in ("Enter", "Space"):
        shut = page.get_by_role("button", expanded=False).and_(heads).first
        words = shut.inner_text()
        shut.press(key)
        page.get_by_role("button", name=words, expanded=True).and_(heads).wait_for()
    page.get_by_role("slider", name="height upper edge, from the bridge of the nose (0) to its tip (1), to").press(
        "ArrowLeft"
    )
    page.locator("button[title='FaceMask one step later']").press("Enter")
    wait_until(lambda: [type(step).__name__ for step in recipe(page).steps] == ["Downsample", "FaceMask"])
    wait_until(lambda: page.evaluate("() => document.activeElement.title") == "FaceMask one step earlier")
    page.keyboard.press("Enter")
    wait_until(lambda: [type(step).__name__ for step in recipe(page).steps] == ["FaceMask", "Downsample"])
    page.locator("button[title='take FaceMask out of the chain']").press("Space")
    wait_until(lambda: len(recipe(page).steps) == 1)
    wait_until(lambda: page.evaluate("() => !!document.activeElement.closest('.fl-controls')"))
    page.get_by_role("button", name="again").press("Enter")
    wait_until(lambda: len(recipe(page).steps) == 2)
    assert wrong == []


def test_a_step_is_added_and_taken_away(voila):
    page, wrong = voila
    choose(page, "prior_guided_x8")
    wait_until(lambda: len(recipe(page).steps) == 1)
    before = pixels(page)
    page.get_by_role("button", name="+ add").click()
    wait_until(lambda: len(recipe(page).steps) == 2 and pixels(page) != before)
    page.get_by_role("button", name="remove").last.click()
    wait_until(lambda: pixels(page) == before)
    assert wrong == []


def test_a_picture_of_ones_own(voila, tmp_path):
    page, wrong = voila
    choose(page, "jdsr_gan_x4")
    Image.fromarray(to_uint8(astronaut(150)[0]).permute(1, 2, 0).numpy()).save(tmp_path / "me.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "me.jpg").read_bytes()[:2000])
    page.get_by_role("button", name="upload", exact=True).click()
    for name, words in (
        ("me.jpg", "point at its eyes"),
        ("broken.jpg", "broken.jpg cannot be read"),
        ("me.jpg", "point at its eyes"),
    ):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="choose a picture").click()
        chooser.value.set_files(tmp_path / name)
        page.get_by_role("alert").filter(has_text=words).wait_for()
    page.get_by_label("point at eyes").check()
    wait_until(lambda: pixels(page, "mask"))
    masked = pixels(page)
    assert push(page, "left mouth corner") != masked and page.get_by_role("alert").count() == 0 and wrong == []


def test_save_writes_the_pair(voila, project):
    page, wrong = voila
    page.get_by_role("button", name="Save").click()
    page.get_by_text("saved in").wait_for()
    pair = project / "data" / "explored" / "0001"
    kept = Image.open(pair / "degraded.png")
    shown = Image.open(io.BytesIO(base64.b64decode(pixels(page).split(",")[1]))).convert("RGB")
    assert kept.tobytes() == shown.tobytes() and (pair / "maps.safetensors").exists() and wrong == []


def test_a_narrow_page_needs_no_sideways_scrolling_and_keeps_the_pictures_in_sight(voila):
    page, wrong = voila
    page.set_viewport_size(dict(width=360, height=740))
    page.get_by_role("button", name="+ add").scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    widths = page.evaluate(
        "[...document.querySelectorAll('.fl-explorer, .fl-explorer *')].filter(e => e.getBoundingClientRect().right >"
        " innerWidth + 1 && !e.closest('.fl-math, .fl-code, .noUi-target')).length"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360 and widths == 0
    low = page.evaluate(f"""() => [...document.querySelectorAll("{CONTROLS}")].filter(e =>
        e.matches('button, select, .jupyter-widget-Collapse-header') && e.getClientRects().length
        && e.getBoundingClientRect().height < 40).map({NAME})""")
    assert low == []  # a finger needs that much
    box = page.locator(".fl-main img").first.bounding_box()
    assert 0 <= box["y"] < 150 and wrong == []


def test_the_notebook_in_jupyterlab(browser, servers):
    page, wrong = open_page(browser, servers["lab"], "lab/tree/explore.ipynb")
    page.get_by_text("| Idle").wait_for(timeout=60_000)  # the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".fl-picture", timeout=60_000, state="attached")
    wait_until(lambda: pixels(page))
    push(page, "seed")
    shut = page.locator(".jupyter-widget-Collapse-header[aria-expanded=false]")
    words = shut.inner_text()
    shut.press("Enter")
    page.get_by_role("button", name=words, expanded=True).wait_for()
    assert page.evaluate("() => document.activeElement.innerText") == words
    page.close()
    assert wrong == []


def test_the_docs_are_searched_by_keyboard_and_fit_a_phone(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "executed", lambda root, source: json.loads((root / source).read_text()))
    wide_code = "```sh\n" + "make " * 60 + "\n```"
    wide_table = "| " + "wide | " * 30 + "\n|" + "---|" * 30
    text = f"# Hello\n\n`{'a_long_name.' * 20}`\n\n{wide_code}\n\n{wide_table}\n"
    site.build(small_project(tmp_path, text), progress=False)
    page = browser.new_page(viewport=dict(width=360, height=740))
    page.goto(f"file://{tmp_path}/build/site/html/index.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # the list of all pages does not stand before the text
    assert page.get_by_role("heading", name="Hello").bounding_box()["y"] < 200
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    assert skip.evaluate("e => e === document.activeElement && e.getBoundingClientRect().left >= 0")
    page.set_viewport_size(dict(width=1280, height=1000))
    for _ in range(50):
        if page.evaluate("document.activeElement.name") == "q":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("dice")
    page.keyboard.press("Enter")
    page.locator("#search-results li a").first.press("Enter")
    page.wait_for_url("**/nbs/00_dice.html*")
    page.close()
