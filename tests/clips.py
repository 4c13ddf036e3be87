"""Small clips for tests that write to disk."""

import numpy as np


def make_clip(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """Returns a bright square moving right over a colour gradient, uint8 [F, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    background = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1)
    clip = np.repeat(background[None], frames, axis=0).astype(np.uint8)
    for i in range(frames):
        clip[i, 16:32, 4 * i : 4 * i + 16] = (240, 240, 30)
    return clip


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(np.float64) - b).mean())


# 3 KB with every character that is special in a tag, a comment block or JSON.
RECORD = {
    "mlx_cogvideo": "0.1.0",
    "settings": {"prompt": '“a cat” says "hi" \\ =;#\n\t🎬 猫 naïve ' * 60, "seed": 2**63},
    "timings": {"denoise": 1.25},
    "nothing": None,
}
