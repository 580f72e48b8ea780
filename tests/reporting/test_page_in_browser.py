"""The report's page in a browser, opened from disk: the map of the photos and the table that can be sorted."""

import json
import re
from dataclasses import replace

import pytest

from components.reporting.page import render
from components.reporting.photo_map import SIDE
from tests.browser import needs_chromium, opened
from tests.reporting.test_page import results  # noqa: F401
from tests.reporting.test_photo_map import CLASSES, artifacts, mapped  # noqa: F401

pytestmark = needs_chromium
POINT = ".map .trace:nth-child(%d) .point"


@pytest.fixture
def address(mapped, results, photos, tmp_path):  # noqa: F811
    results.pending["dino"] = "not trained yet"
    file = tmp_path / "index.html"
    near = {"0": {"rows": [1, 2], "cosines": [0.5, 0.4]}}
    file.write_text(render(results, photos, near, 4, photo_map=mapped), encoding="utf-8")
    return file.as_uri()


def drag(page, start, end):
    """Draws with the mouse from one place to another, both shares of the map's width and height."""
    page.move_to(".map .nsewdrag")
    rectangle = "document.querySelector('.map .nsewdrag').getBoundingClientRect()"
    box = page.evaluate(f"(b => [b.x, b.y, b.width, b.height])({rectangle})")
    middle = tuple((first + last) / 2 for first, last in zip(start, end, strict=True))
    steps = [("mousePressed", start), ("mouseMoved", middle), ("mouseMoved", end), ("mouseReleased", end)]
    for kind, (across, down) in steps:
        place = {"x": box[0] + across * box[2], "y": box[1] + down * box[3]}
        page.call("Input.dispatchMouseEvent", type=kind, **place, button="left", buttons=1, clickCount=1)


def click(page, selector):
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_photos_are_seen_by_pointing_and_by_selecting(address, mapped, tmp_path, width, dark):  # noqa: F811
    with opened(address, tmp_path / "profile", width=width, dark=dark) as page:
        page.wait_for(f"document.querySelectorAll('.map .point').length == {mapped.shown}")
        page.move_to(POINT % 1)
        page.wait_for("!document.querySelector('.tip').hidden")
        assert page.evaluate("document.querySelector('.tip figcaption').textContent") in mapped.data["label"]
        style = page.evaluate("getComputedStyle(document.querySelector('.tip i')).backgroundImage")
        assert style.startswith('url("data:image/jpeg')
        drag(page, (0.01, 0.01), (0.99, 0.99))
        page.wait_for(f"document.querySelectorAll('.selection figure').length == {mapped.shown}")
        words = page.evaluate("document.querySelector('.selection p').textContent")
        assert words.startswith(f"{mapped.shown} photos selected: ")
        count = mapped.data["group"].count(0)
        assert f"{count} {mapped.data['groups'][0]}" in words
        places = page.evaluate(
            "[...document.querySelectorAll('.selection figure')]"
            ".map(e => [e.title, e.firstChild.style.backgroundPosition])"
        )
        scale = 1.5
        for path, place in places:
            row, column = divmod(mapped.data["path"].index(path), mapped.data["columns"])
            assert place == f"{-column * SIDE * scale:g}px {-row * SIDE * scale:g}px".replace("-0px", "0px")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.problems
        assert all(url == address or url.startswith(("data:", "blob:")) for url in page.requests)


def test_the_legend_hides_classes_and_shows_their_names_as_they_are(address, mapped, tmp_path):  # noqa: F811
    visible = "document.querySelector('.plot').data.map(trace => trace.visible !== false)"
    with opened(address, tmp_path / "profile") as page:
        page.wait_for(f"document.querySelectorAll('.map .point').length == {mapped.shown}")
        names = page.evaluate("[...document.querySelectorAll('.legend button')].map(e => e.textContent)")
        assert names == mapped.data["groups"]
        assert set(CLASSES) < set(names)
        assert page.evaluate("document.title").startswith("selfsight")
        everything = [True] * len(names)
        click(page, ".legend button:nth-child(2)")
        assert page.evaluate(visible) == [place != 1 for place in range(len(names))]
        click(page, ".legend button:nth-child(2)")
        assert page.evaluate(visible) == everything
        twice = "document.querySelector('.legend button').dispatchEvent(new MouseEvent('dblclick'))"
        page.evaluate(twice)
        assert page.evaluate(visible) == [place == 0 for place in range(len(names))]
        page.evaluate(twice)
        assert page.evaluate(visible) == everything
        assert not page.problems


def test_without_labels_there_is_one_color_and_only_so_many_photos_are_shown(
    mapped,  # noqa: F811
    results,  # noqa: F811
    photos,
    tmp_path,
):
    data = {**mapped.data, "groups": [], "group": [0] * mapped.shown, "label": [""] * mapped.shown}
    file = tmp_path / "unlabeled.html"
    file.write_text(render(results, photos, {}, 4, photo_map=replace(mapped, data=data)), encoding="utf-8")
    with opened(file.as_uri(), tmp_path / "profile") as page:
        page.wait_for(f"document.querySelectorAll('.map .trace:only-child .point').length == {mapped.shown}")
        assert page.evaluate("document.querySelectorAll('.legend button').length") == 0
        page.evaluate(
            "document.querySelector('.plot').emit('plotly_selected', "
            "{points: Array.from({length: 100}, (_, point) => ({customdata: point % 32}))})"
        )
        assert page.evaluate("document.querySelectorAll('.selection figure').length") == 40
        words = page.evaluate("document.querySelector('.selection p').textContent")
        assert words == "100 photos selected. 40 of them, evenly chosen:"
        assert page.evaluate("document.querySelector('.selection figcaption').textContent") == mapped.data["path"][0]
        page.evaluate("document.querySelector('.plot').emit('plotly_deselect')")
        assert page.evaluate("document.querySelector('.selection').innerText").strip() == ""
        assert not page.problems


def test_the_colors_follow_the_theme(address, tmp_path):
    color = "document.querySelector('.plot').layout.font.color"
    with opened(address, tmp_path / "profile") as page:
        page.wait_for("!!document.querySelector('.map .point')")
        page.evaluate("document.documentElement.style.setProperty('--ink', '#fedcba'); 0")
        assert page.evaluate(color) != "#fedcba"
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.wait_for(f"{color} == '#fedcba'")


def test_a_click_on_a_column_head_sorts(address, tmp_path):
    names = "[...document.querySelectorAll('.sortable td.name')].map(e => e.firstChild.textContent)"
    order = "document.querySelectorAll('.sortable th')[1].ariaSort"
    written = ["majority", "pixels", "random", "simclr", "moco", "dino"]
    with opened(address, tmp_path / "profile") as page:
        assert page.evaluate(names) == written
        page.evaluate("document.querySelectorAll('.sortable th button')[1].focus()")
        for expected, state in (
            (["moco", "pixels", "random", "simclr", "majority", "dino"], "descending"),  # 80, 20, 20, 20, 10 %, none
            (["majority", "pixels", "random", "simclr", "moco", "dino"], "ascending"),
            (written, None),
        ):
            page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
            page.call("Input.dispatchKeyEvent", type="keyUp", key="Enter")
            page.wait_for(f"{order} == {json.dumps(state)}")
            assert page.evaluate(names) == expected
        click(page, ".sortable th:first-child button")
        assert page.evaluate(names) == sorted(written)
        assert page.evaluate(order) is None
        assert not page.problems


def test_without_javascript_the_table_stays_and_the_map_says_what_it_needs(address, tmp_path):
    with opened("about:blank", tmp_path / "profile") as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.navigate", url=address)
        page.wait_for("document.readyState == 'complete' && document.title.startsWith('selfsight')")
        text = page.evaluate("document.body.innerText")
        assert "The map needs JavaScript." in text
        assert re.search(r"kNN accuracy\s+linear accuracy", text)
        assert page.evaluate("document.querySelectorAll('button').length") == 0
        assert not page.problems
