"""The page as a person uses it, in Chromium."""

import os
import re

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs the extra ui")
pytest.importorskip("playwright", reason="needs the extra ui-test")

from browsing import (
    PATIENCE,
    PHONE,
    TABS,
    Server,
    choose_tab,
    fill,
    find_browser,
    finished,
    is_too_wide,
    make,
    open_page,
    plays,
    started_browser,
    video_of,
)
from clips import make_clip
from commands import run
from PIL import Image
from playwright.sync_api import expect

from mlx_cogvideo.video import read_video, write_video

expect.set_options(timeout=1000 * PATIENCE)
NEEDS = "MLX_COGVIDEO_NEEDS_BROWSER"
if find_browser() is None and not os.environ.get(NEEDS):
    pytest.skip("there is no Chromium: MLX_COGVIDEO_CHROMIUM names one", allow_module_level=True)

PROMPT = "a red circle moves right on a white background"
HARMFUL = "<img src=x onerror='window.hit = 1'> {{ 7 * 7 }} ${window.hit = 1}"


@pytest.fixture(scope="module")
def browser():
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page") / "home")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def page(browser, server):
    with open_page(browser, server) as page:
        yield page


def test_a_video_is_made_from_a_prompt_and_plays(page):
    fill(page, "text", prompt=PROMPT, num_inference_steps=4)
    make(page, "text")
    assert plays(finished(page, PROMPT))


def test_a_video_is_made_from_a_picture(page, tmp_path):
    picture, prompt = tmp_path / "picture.png", "a square moves on"
    Image.fromarray(make_clip(frames=1, height=96, width=96)[0]).save(picture)
    choose_tab(page, "Image to video")
    fill(page, "image", prompt=prompt, num_inference_steps=2)
    page.locator("#image-image input[type=file]").set_input_files(picture)
    page.locator("#image-image img").wait_for()
    make(page, "image")
    assert plays(finished(page, prompt))


def test_a_video_is_made_from_a_clip(page, tmp_path):
    clip, prompt = tmp_path / "clip.mp4", "a square becomes blue"
    write_video(clip, make_clip(frames=17, height=96, width=96), fps=8)
    choose_tab(page, "Video to video")
    fill(page, "video", prompt=prompt, num_inference_steps=4)
    page.locator("#video-video input[type=file]").set_input_files(clip)
    page.locator("#video-video video").wait_for()
    make(page, "video")
    assert plays(finished(page, prompt))


def test_a_stopped_video_survives_the_server_and_is_resumed_with_the_same_frames(
    browser, server, tmp_path
):
    prompt, whole = "a blue square grows on a gray background", tmp_path / "whole.mp4"
    with open_page(browser, server) as page:
        fill(page, "text", prompt=prompt, num_inference_steps=10, seed=5)
        make(page, "text")
        page.locator("#now-preview img").wait_for()
        page.locator("#now-actions").get_by_role("button", name="Stop").click()
        expect(page.locator("#now-over")).to_contain_text("Stopped at")
    server.kill()
    server.start()
    with open_page(browser, server) as page:
        page.locator("#now-over").get_by_role("button", name="Resume").click()
        assert plays(finished(page, prompt))
        resumed = video_of(page, server)
    assert run("--prompt", prompt, "--steps", 10, "--seed", 5, "--output", whole) == 0
    assert np.array_equal(read_video(resumed)[0], read_video(whole)[0])


def test_a_finished_video_is_made_again_with_another_seed(page, server):
    fill(page, "text", prompt="a green triangle", num_inference_steps=2, seed=1)
    make(page, "text")
    finished(page, "a green triangle")
    choose_tab(page, "My videos")
    page.locator("#videos-grid button", has_text="a green triangle").click()
    assert plays(page.locator("#videos-shown video"))
    expect(page.locator("#videos-settings tr", has_text="Seed")).to_contain_text("1")
    page.locator("#videos-again").click()
    page.locator("#videos-said .well").wait_for()
    buttons = page.locator("#videos-grid button", has_text="a green triangle")
    expect(buttons).to_have_count(2)
    names = buttons.evaluate_all("buttons => buttons.map(button => button.dataset.name)")
    one, other = (read_video(server.folder / "videos" / f"{name}.mp4")[0] for name in names)
    assert not np.array_equal(one, other)


def test_two_tabs_share_the_queue(browser, server):
    with open_page(browser, server) as one, open_page(browser, server) as two:
        fill(one, "text", prompt="0", num_inference_steps=500)
        make(one, "text")
        one.locator("#now-actions button").first.wait_for()
        for page, prompt in ((one, "1"), (two, "2"), (one, "3"), (two, HARMFUL)):
            fill(page, "text", prompt=prompt, num_inference_steps=2)
            make(page, "text")
            expect(queue_of(page).last).to_have_text(re.compile(re.escape(prompt)))
        assert titles(two) == ["1", "2", "3", HARMFUL]
        queue_of(two).nth(2).get_by_role("button", name="Move up").click()
        expect(queue_of(one)).to_have_text([re.compile(f"^{title}") for title in "132<"])
        for left in range(3, -1, -1):
            queue_of(one).first.get_by_role("button", name="Cancel").click()
            expect(queue_of(two)).to_have_count(left)
        one.locator("#now-actions").get_by_role("button", name="Cancel").click()
        expect(two.locator("#now-actions")).to_be_empty()
        assert [page.evaluate("window.hit") for page in (one, two)] == [None, None]


def test_a_phone_shows_every_tab_without_scrolling_sideways(browser, server):
    with open_page(browser, server, PHONE, has_touch=True, is_mobile=True) as page:
        for title in TABS:
            choose_tab(page, title)
            assert not is_too_wide(page), title


def test_what_is_wrong_is_said_beside_the_button(page):
    page.locator("#text-make").click()
    expect(page.locator("#text-said")).to_have_text("Describe what the video shows first.")
    fill(page, "text", prompt=PROMPT, width=100)
    expect(page.locator("#text-estimate")).to_contain_text("multiple of 16")


def queue_of(page):
    return page.locator("#now-queue li")


def titles(page):
    return page.locator("#now-queue .title").all_inner_texts()
