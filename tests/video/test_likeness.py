"""How alike videos are, and the contact sheet that shows them beside each other."""

import numpy as np
import pytest

from mlx_cogvideo.video import read_image
from mlx_cogvideo.video.likeness import likeness, ssim
from mlx_cogvideo.video.picture_writer import contact_sheet, write_picture

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)


def test_equal_videos_are_equal():
    found = likeness(VIDEO, VIDEO)
    assert (found.psnr, found.ssim, found.flicker) == (None, 1.0, 0.0)


def test_psnr_and_flicker_follow_their_formulas():
    other = np.clip(VIDEO.astype(int) + RNG.integers(-9, 10, VIDEO.shape), 0, 255).astype(np.uint8)
    found = likeness(other, VIDEO)
    off = other.astype(float) - VIDEO
    assert found.psnr == pytest.approx(20 * np.log10(255) - 10 * np.log10(np.square(off).mean()))
    assert found.flicker == pytest.approx(np.abs(np.diff(off, axis=0)).mean())


def test_a_constant_difference_does_not_flicker():
    darker = np.full_like(VIDEO, 100)
    assert likeness(darker, darker + 5).flicker == pytest.approx(0, abs=1e-9)
    assert likeness(darker[:1], darker[:1] + 5).flicker == 0


def test_ssim_is_that_of_all_windows():
    a, b = RNG.random((2, 12, 15, 3))
    values = []
    for y in range(12 - 6):
        for x in range(15 - 6):
            p, q = (each[y : y + 7, x : x + 7].reshape(-1, 3) for each in (a, b))
            mean = p.mean(0), q.mean(0)
            cov = (p * q).mean(0) - mean[0] * mean[1]
            c1, c2 = 1e-4, 9e-4
            high = (2 * mean[0] * mean[1] + c1) * (2 * cov + c2)
            low = (mean[0] ** 2 + mean[1] ** 2 + c1) * (p.var(0) + q.var(0) + c2)
            values.append(high / low)
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a[:3, :3], a[:3, :3]) == pytest.approx(1)  # smaller than a window


def test_videos_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        likeness(VIDEO, VIDEO[:3])


def test_a_contact_sheet_has_a_row_for_each_video_and_a_column_for_each_time():
    levels = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    video = np.broadcast_to(levels, (9, 20, 30, 3))
    sheet = contact_sheet([video, video + 10], columns=3, width=30, gap=2)
    assert sheet.shape == (2 * 20 + 2, 3 * 30 + 2 * 2, 3)
    for row in range(2):
        for column, time in enumerate((0, 4, 8)):
            frame = sheet[row * 22 : row * 22 + 20, column * 32 : column * 32 + 30]
            assert np.abs(frame.astype(int) - (20 * time + 10 * row)).max() <= 1
    assert (sheet[20:22] == 160).all() and (sheet[:, 30:32] == 160).all()


def test_small_frames_are_enlarged_without_a_blur():
    video = RNG.integers(0, 256, (1, 20, 30, 3), dtype=np.uint8)
    large = video[0].repeat(3, axis=0).repeat(3, axis=1)
    assert np.abs(contact_sheet([video], width=100).astype(int) - large).max() <= 1


def test_frames_of_a_sheet_are_made_small_and_few_are_all_shown():
    video = np.zeros((2, 480, 720, 3), np.uint8)
    assert contact_sheet([video], columns=5).shape == (213, 2 * 320 + 4, 3)


def test_a_picture_is_written_without_loss(tmp_path):
    write_picture(tmp_path / "a.png", VIDEO[0])
    assert (read_image(tmp_path / "a.png", 24, 32) == VIDEO[0]).all()
