"""The page in a real browser: a server of its own, and tabs whose requests are watched."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)
from processes import free_ports

NAMES = ("chromium", "chromium-browser", "google-chrome")
ON_A_MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
PATIENCE = 90.0
"""Seconds that a video, or a server, may take on a busy machine."""
TABS = {
    "Text to video": "#text-estimate p",
    "Image to video": "#image-estimate p",
    "Video to video": "#video-estimate p",
    "My videos": "#videos-grid p",
    "Fine-tuning": "#training-list p",
    "Models": "#models-table table",
}
"""The titles of all tabs, and what each has once it is drawn."""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}


def find_browser() -> str | None:
    """The Chromium or Chrome of this machine, or None; MLX_COGVIDEO_CHROMIUM chooses another."""
    named = os.environ.get("MLX_COGVIDEO_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    return found or (str(ON_A_MAC) if ON_A_MAC.exists() else None)


@contextmanager
def started_browser() -> Iterator[Browser]:
    """The browser, without a window."""
    environment = {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox"], env=environment
        )
        yield browser
        browser.close()


class Server:
    """``mlx-cogvideo ui`` in a process of its own.

    Attributes:
        folder: where it keeps everything.
        address: of the page.
    """

    def __init__(self, folder: Path):
        self.folder, self._port = folder, free_ports(1)[0]
        self.address = f"http://127.0.0.1:{self._port}/"

    def start(self) -> float:
        """Starts it; returns the seconds after which it answered."""
        begin = time.monotonic()
        command = [sys.executable, "-m", "mlx_cogvideo", "ui", "--no-browser"]
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "messages.txt", "ab") as messages:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), "--folder", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "messages.txt").read_text()
            assert time.monotonic() < begin + PATIENCE
            time.sleep(0.05)
        return time.monotonic() - begin

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.address, timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def open_page(
    browser: Browser, server: Server, size: dict | None = None, **options
) -> Iterator[Page]:
    """A tab with the page. No other host may be asked, and no error be written to the console."""
    context = browser.new_context(viewport=size or DESK, **options)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    hosts, errors = set(), []

    def asked(request: Request) -> None:
        if (url := urlsplit(request.url)).scheme not in ("data", "blob"):
            hosts.add(url.netloc)

    def written(message: ConsoleMessage) -> None:
        address = message.location["url"]
        # A preview may have gone by the time that it is asked for: its video is finished.
        if message.type == "error" and "/preview" not in address:
            errors.append(f"{message.text} ({address})")

    page.on("request", asked)
    page.on("console", written)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(server.address)
    page.locator("#text-make").wait_for()
    yield page
    context.close()
    assert hosts == {urlsplit(server.address).netloc}
    assert errors == []


def fill(page: Page, tab: str, **settings: object) -> None:
    """Types settings into a tab's fields, by their names."""
    for name, value in settings.items():
        typed = field(page, tab, name)
        typed.fill(str(value))
        typed.blur()


def field(page: Page, tab: str, name: str) -> Locator:
    """What a setting is typed into."""
    return page.locator(f"#{tab}-{name}").locator("textarea, input").first


def choose_tab(page: Page, title: str) -> None:
    """Opens a tab, and waits until it is drawn."""
    page.get_by_role("tab", name=title).click()
    page.locator(TABS[title]).first.wait_for()


def make(page: Page, tab: str) -> None:
    """Presses the button, and waits until the video is queued."""
    page.locator(f"#{tab}-make").click()
    said = page.locator(f"#{tab}-said p")
    expect(said).to_have_class("well", timeout=1000 * PATIENCE)


def finished(page: Page, prompt: str) -> Locator:
    """The video of a prompt, once it is finished and shown."""
    page.locator("#now-finished .title", has_text=prompt).wait_for()
    return page.locator("#now-finished video")


def plays(video: Locator) -> bool:
    """Whether a video has no error and goes on."""
    video.evaluate("video => { video.muted = true; return video.play(); }")
    return video.evaluate(
        """video => new Promise(resolve => {
          const look = () => video.error === null && video.duration > 0 && video.currentTime > 0
            ? resolve(true) : video.error ? resolve(false) : setTimeout(look, 50);
          look();
        })"""
    )


def video_of(page: Page, server: Server) -> Path:
    """The file of the video that is shown as finished."""
    source = page.locator("#now-finished video").get_attribute("src")
    return server.folder / "videos" / f"{source.split('/')[-2]}.mp4"


def is_too_wide(page: Page) -> bool:
    """Whether a page has to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
