"""Uses the page in Chromium where that is too slow for a test, and looks for faults of access.

    npm pack axe-core && tar xf axe-core-*.tgz
    python tools/checks/browser.py --axe package/axe.min.js --pictures pictures

A model is fine-tuned on four clips for a few steps, and makes a video with the adapter. Then
axe-core looks at each tab in light, in dark and in the width of a phone, and each is kept as a
picture. Faults that axe-core calls serious or critical make this fail.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, expect

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from browsing import (
    DESK,
    PATIENCE,
    PHONE,
    TABS,
    Server,
    choose_tab,
    fill,
    finished,
    is_too_wide,
    make,
    open_page,
    plays,
    started_browser,
    video_of,
)
from clips import make_clip

from mlx_cogvideo.video import read_record, write_video

PROMPT = "a square moves right"
LOOKS = {
    "light": {"size": DESK, "color_scheme": "light"},
    "dark": {"size": DESK, "color_scheme": "dark"},
    "phone": {"size": PHONE, "is_mobile": True, "has_touch": True},
}
OPENED = {
    "My videos": ("#videos-grid button", "#videos-settings table"),
    "Fine-tuning": ("#training-list button", "#training-about h3"),
}
"""What is pressed on a tab before it is looked at, and what appears."""
GRAVE = {"serious", "critical"}
expect.set_options(timeout=1000 * PATIENCE)


def fine_tune(page: Page, folder: Path, steps: int) -> None:
    """Trains an adapter on four clips, and waits for its end."""
    clips = [folder / f"clip{number}.mp4" for number in range(4)]
    for number, clip in enumerate(clips):
        frames = np.roll(make_clip(frames=17, height=96, width=96), 20 * number, axis=1)
        write_video(clip, frames, fps=8)
    choose_tab(page, "Fine-tuning")
    fill(page, "training", title="Squares", iters=steps)
    page.locator("#training-clips input[type=file]").set_input_files(clips)
    for clip in clips:
        page.locator("#training-clips", has_text=clip.stem).wait_for()
    fill(page, "training", captions="\n".join([PROMPT] * len(clips)))
    page.locator("#training-start").click()
    page.locator("#training-said .well").wait_for()
    expect(page.locator("#training-list li").first).to_contain_text("Finished")


def use_adapter(page: Page, server: Server) -> None:
    """Makes a video with the adapter, and checks that its record names it."""
    page.locator("#training-list").get_by_role("button", name="Show").click()
    expect(page.locator("#training-loss canvas, #training-loss svg").first).to_be_visible()
    page.locator("#training-try").click()
    expect(page.locator("#text-prompt")).to_be_visible()
    fill(page, "text", prompt=PROMPT, num_inference_steps=4)
    make(page, "text")
    assert plays(finished(page, PROMPT))
    adapters = read_record(video_of(page, server))["settings"]["lora"]
    assert len(adapters) == 1, adapters


def look(browser: Browser, server: Server, axe: str | None, pictures: Path | None) -> Counter:
    """Looks at each tab in each look; returns how often which fault was found."""
    faults = Counter()
    for name, options in LOOKS.items():
        with open_page(browser, server, **options) as page:
            if axe is not None:
                page.evaluate(axe)
            for number, tab in enumerate(TABS):
                choose_tab(page, tab)
                if tab in OPENED:
                    button, appears = OPENED[tab]
                    page.locator(button).first.click()
                    page.locator(appears).first.wait_for()
                assert not is_too_wide(page), f"{tab}, {name}: it has to be scrolled sideways"
                if pictures is not None:
                    page.screenshot(path=pictures / f"{name}-{number}.png", full_page=True)
                if axe is not None:
                    faults.update(faults_of(page, f"{tab}, {name}"))
    return faults


def faults_of(page: Page, where: str) -> Counter:
    """The faults that axe-core finds in a page as it is now, which are printed."""
    found = Counter()
    for fault in page.evaluate("async () => (await axe.run()).violations"):
        found[fault["impact"], fault["id"]] += len(fault["nodes"])
        print(f"{where}: {fault['impact']} {fault['id']}: {fault['help']}")
        for node in fault["nodes"][:3]:
            print(f"    {node['html'][:160]}")
    if not found:
        print(f"{where}: nothing")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--pictures", type=Path, help="folder to keep a picture of each tab in")
    parser.add_argument("--steps", type=int, default=10, help="steps of the training (default: 10)")
    args = parser.parse_args()
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
    axe = None if args.axe is None else args.axe.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary, started_browser() as browser:
        server = Server(Path(temporary) / "home")
        print(f"the server answered after {server.start():.1f} s")
        try:
            with open_page(browser, server) as page:
                fine_tune(page, Path(temporary), args.steps)
                print("fine-tuned")
                use_adapter(page, server)
                print("made a video with the adapter")
            faults = look(browser, server, axe, args.pictures)
        finally:
            server.kill()
    grave = {fault: count for fault, count in faults.items() if fault[0] in GRAVE}
    print(f"faults: {dict(faults)}")
    sys.exit(f"grave faults: {grave}" if grave else None)


if __name__ == "__main__":
    main()
