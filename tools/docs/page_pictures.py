"""Takes the pictures of the page for docs/page.md, from a server with the bundled demo.

    python tools/docs/page_pictures.py docs/assets

Needs Chromium, and the extras ui and ui-test. Replaces page-make.png, page-videos.png,
page-training.png and page-phone.png in the folder. It takes some minutes.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browsing import (
    PATIENCE,
    PHONE,
    Server,
    choose_tab,
    fill,
    finished,
    make,
    open_page,
    started_browser,
)
from clips import make_clip

from mlx_cogvideo.video import write_video

SIZE = {"width": 1200, "height": 1000}
COLOURS = 128
MADE = (
    "a red circle moves right on a white background",
    "a blue square grows on a gray background",
    "a green triangle moves up on a black background",
)
BEING_MADE = "a purple triangle moves left on a white background"
WAITING = ("an orange square moves down on a black background", "a blue circle moves up")
expect.set_options(timeout=5 * 1000 * PATIENCE)


def keep(page: Page, file: Path) -> None:
    """Writes what the window shows, in few colours."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def make_videos(page: Page) -> None:
    """Makes the videos of the gallery."""
    for prompt in MADE:
        fill(page, "text", prompt=prompt, seed=0)
        make(page, "text")
        finished(page, prompt)


def fine_tune(page: Page, folder: Path) -> None:
    """Trains an adapter on four clips, and shows how it went."""
    clips = [folder / f"square-{number}.mp4" for number in range(1, 5)]
    for number, clip in enumerate(clips):
        frames = np.roll(make_clip(frames=17, height=96, width=96), 20 * number, axis=1)
        write_video(clip, frames, fps=8)
    choose_tab(page, "Fine-tuning")
    fill(page, "training", title="Squares", iters=30)
    page.locator("#training-clips input[type=file]").set_input_files(clips)
    for clip in clips:
        page.locator("#training-clips", has_text=clip.stem).wait_for()
    fill(page, "training", captions="\n".join(["a yellow square moves right"] * len(clips)))
    page.locator("#training-start").click()
    expect(page.locator("#training-list li").first).to_contain_text("Finished")
    page.locator("#training-list").get_by_role("button", name="Show").click()
    page.locator("#training-loss canvas, #training-loss svg").first.wait_for()
    page.locator("#training-one").scroll_into_view_if_needed()


def show_video(page: Page) -> None:
    """Shows a video of the gallery, and how it was made."""
    choose_tab(page, "My videos")
    expect(page.locator("#videos-grid button")).to_have_count(len(MADE))
    page.locator("#videos-grid button", has_text=MADE[0]).click()
    page.locator("#videos-shown video").wait_for()


def show_queue(page: Page) -> None:
    """Has a video be made, with a preview, and others wait."""
    fill(page, "text", prompt=BEING_MADE, num_inference_steps=100)
    make(page, "text")
    page.locator("#now-progress .title", has_text=BEING_MADE).wait_for()
    for prompt in WAITING:
        fill(page, "text", prompt=prompt, num_inference_steps=10)
        make(page, "text")
        page.locator("#now-queue li", has_text=prompt).wait_for()
    page.locator("#now-preview img").wait_for()
    expect(page.locator("#now-progress")).to_contain_text("left")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go, such as docs/assets")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary, started_browser() as browser:
        server = Server(Path(temporary) / "home")
        server.start()
        try:
            with open_page(browser, server, SIZE, color_scheme="light") as page:
                make_videos(page)
                show_video(page)
                keep(page, folder / "page-videos.png")
                fine_tune(page, Path(temporary))
                keep(page, folder / "page-training.png")
                choose_tab(page, "Text to video")
                show_queue(page)
                page.mouse.wheel(0, -5000)
                keep(page, folder / "page-make.png")
            with open_page(browser, server, PHONE, color_scheme="light") as page:
                page.locator("#now-preview img").wait_for()
                keep(page, folder / "page-phone.png")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
