"""The page of `make app` in a browser: a photo is dropped, and all that the models say of it is shown."""

from __future__ import annotations

import threading
import time

import pytest
import uvicorn

from components.commands.app import HOST, make_app
from components.commands.photo_uses import PhotoUses
from tests.browser import needs_chromium, opened
from tests.commands.test_app import folders  # noqa: F401

pytestmark = [needs_chromium, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


@pytest.fixture(scope="module")
def address(folders):  # noqa: F811
    root = folders.data.parent
    app = make_app(PhotoUses(folders, root / "adapt", root / "connect"))
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://{HOST}:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_chosen_photo_is_answered_by_every_model(address, folders, tmp_path, width, dark):  # noqa: F811
    with opened(address, tmp_path / "profile", width=width, dark=dark) as page:
        page.choose_file("#file", folders.data.parent / "photos" / "3.png")
        page.wait_for("document.querySelectorAll('#similar figure').length == 12")
        page.wait_for("document.querySelectorAll('#classes .class').length == 3")
        page.wait_for("document.querySelector('#look .out img')?.naturalWidth > 0")
        page.wait_for("document.querySelector('#answer .answer')?.textContent.length > 0")
        assert page.evaluate("document.querySelector('#similar figcaption span').textContent") == "3.png"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.problems
        assert all(url.startswith((address, "data:", "blob:")) for url in page.requests)


def test_a_file_that_is_no_photo_gets_a_sentence(address, tmp_path):
    broken = tmp_path / "notes.png"
    broken.write_text("no photo")
    with opened(address, tmp_path / "profile") as page:
        page.choose_file("#file", broken)
        page.wait_for("document.querySelector('#told').className == 'error'")
        told = page.evaluate("document.querySelector('#told').textContent")
        assert "notes.png" in told
        assert "Traceback" not in told
        assert page.evaluate("document.querySelector('#similar').hidden")
