"""Files as cameras, phones and other programs write them: which stream, which frames, how long."""

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_clip
from PIL import Image

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.cli.lora import main as lora
from mlx_cogvideo.video import (
    ClipSpec,
    measure,
    read_clip,
    read_frames,
    read_image,
    read_video,
    stills,
    write_video,
)
from mlx_cogvideo.video.clip import CLIPS, IMAGES

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="makes its clips with ffmpeg")


def ffmpeg(*arguments) -> None:
    subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True)


def grays(path: Path, frames: int, fps, *options, size: str = "64x48") -> Path:
    """Writes a clip whose frames are 4 levels brighter each, so that they can be identified."""
    width, height = map(int, size.split("x"))
    raw = b"".join(bytes([20 + 4 * i]) * (width * height * 3) for i in range(frames))
    command = [FFMPEG, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    command += ["-r", str(fps), "-i", "-", *map(str, options), str(path)]
    subprocess.run(command, input=raw, check=True)
    return path


def numbers(clip: np.ndarray) -> list[int]:
    """Returns which frames of `grays` these are."""
    return [round((frame.mean() - 20) / 4) for frame in clip]


def cover_in_front(path: Path) -> Path:
    """Moves the tags of an mp4, with its cover, before its tracks, as some taggers write them."""
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    tags = data.index(b"udta", start, end) - 4
    size = int.from_bytes(data[tags : tags + 4], "big")
    tracks = data.index(b"trak", start, end) - 4
    moved = data[:tracks] + data[tags : tags + size] + data[tracks:tags] + data[tags + size :]
    path.write_bytes(moved)
    return path


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    """A clip of 17 frames, and a red poster."""
    clip = grays(tmp_path / "main.mp4", 17, 8, "-c:v", "libx264", "-crf", "4")
    Image.new("RGB", (128, 96), (255, 0, 0)).save(tmp_path / "poster.jpg")
    return clip, tmp_path / "poster.jpg"


def with_tagged_cover(clip, poster, folder):
    path = folder / "a.mp4"
    options = ["-map", 0, "-map", 1, "-c", "copy", "-disposition:v:1", "attached_pic"]
    ffmpeg("-i", clip, "-i", poster, *options, path)
    return cover_in_front(path)


def with_attached_cover(clip, poster, folder):
    path = folder / "a.mkv"
    options = ["-map", 1, "-map", 0, "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", clip, "-i", poster, *options, "-disposition:v:1", 0, path)
    return path


def with_poster(clip, poster, folder):
    path = folder / "a.mkv"
    ffmpeg("-i", poster, "-i", clip, "-map", 0, "-map", 1, "-c", "copy", path)
    return path


def with_side_stream(clip, poster, folder):
    path, small = folder / "a.mp4", folder / "small.mp4"
    grays(small, 1, 8, "-c:v", "libx264", size="32x32")
    options = ["-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", 0]
    ffmpeg("-i", small, "-i", clip, *options, "-disposition:v:1", "default", path)
    return path


@needs_ffmpeg
@pytest.mark.parametrize(
    "make", [with_tagged_cover, with_attached_cover, with_poster, with_side_stream]
)
def test_the_clip_is_read_and_not_its_cover_or_a_side_stream(tmp_path, parts, make):
    path = make(*parts, tmp_path)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2 and container.streams.best("video").index == 1
    assert numbers(read_clip(path, ClipSpec(17, 48, 64, 8))) == list(range(17))
    assert str(measure(path, 8)) == "ClipInfo(height=48, width=64, frames=17)"
    assert numbers(read_frames(path)) == numbers(read_video(path)[0]) == list(range(17))


STEADY = [
    ("mp4", "libx264", "-crf", 4),
    ("mkv", "libx264", "-crf", 4),
    ("webm", "libvpx", "-b:v", "2M", "-deadline", "realtime"),
    ("flv", "flv", "-q:v", 2),
    ("gif", "gif"),
    ("wmv", "wmv2", "-q:v", 2),
    ("ts", "mpeg2video", "-q:v", 2),
    ("avi", "mpeg4", "-q:v", 2),
]


@needs_ffmpeg
@pytest.mark.parametrize(("suffix", "codec", "options"), [(s, c, o) for s, c, *o in STEADY])
def test_a_clip_has_as_many_frames_in_every_container(tmp_path, suffix, codec, options):
    rate = 16 if suffix != "ts" else 24
    clip = grays(tmp_path / f"a.{suffix}", 48, rate, "-c:v", codec, *options)
    info = measure(clip, rate)
    assert info.frames == 48 and info.seconds == pytest.approx(48 / rate, abs=1e-4)
    assert measure(clip, rate / 2).frames == 24
    assert numbers(read_clip(clip, ClipSpec(48, 48, 64, rate))) == list(range(48))
    assert numbers(read_clip(clip, ClipSpec(24, 48, 64, rate / 2))) == list(range(0, 48, 2))
    with pytest.raises(InvalidInputError, match=f"48 frames at {rate} a second, and 49 are wanted"):
        read_clip(clip, ClipSpec(49, 48, 64, rate))


@needs_ffmpeg
def test_a_dropped_frame_does_not_make_a_clip_longer(tmp_path):
    drop = ["-vf", "select='not(eq(n,20))'", "-fps_mode", "vfr", "-c:v", "libx264", "-crf", 4]
    clip = grays(tmp_path / "a.mkv", 48, 16, *drop)
    assert numbers(read_clip(clip, ClipSpec(48, 48, 64, 16)))[18:24] == [18, 19, 19, 21, 22, 23]
    assert measure(clip, 16).frames == 48


OTHERS = {
    "mts": ("mpegts", "libx264"),
    "m2ts": ("mpegts", "libx264"),
    "mpg": ("mpeg", "mpeg1video"),
    "mpeg": ("mpeg", "mpeg2video"),
    "vob": ("vob", "mpeg2video"),
    "asf": ("asf", "wmv2"),
    "f4v": ("f4v", "libx264"),
    "3gp": ("3gp", "mpeg4"),
    "ogv": ("ogg", "libtheora"),
    "apng": ("apng", "apng"),
    "mxf": ("mxf", "mpeg2video"),
    "y4m": ("yuv4mpegpipe", "wrapped_avframe"),
    "mjpeg": ("mjpeg", "mjpeg"),
}


@needs_ffmpeg
@pytest.mark.parametrize("suffix", OTHERS)
def test_clips_of_many_containers_are_read(tmp_path, suffix):
    form, codec = OTHERS[suffix]
    pixels = "rgb24" if codec == "apng" else "yuv420p"
    quality = 10 if codec == "libtheora" else 2  # Theora counts upwards
    options = ["-c:v", codec, "-q:v", quality, "-pix_fmt", pixels, "-f", form]
    clip = grays(tmp_path / f"A.{suffix.upper()}", 25, 25, *options)
    assert numbers(read_clip(clip, ClipSpec(9, 48, 64, 12.5))) == list(range(0, 18, 2))
    assert f".{suffix}" in CLIPS


@needs_ffmpeg
def test_raw_video_without_times_has_its_frames_at_a_steady_rate(tmp_path):
    clip = grays(tmp_path / "a.h264", 25, 25, "-c:v", "libx264", "-qp", 4, "-bf", 2)
    assert measure(clip, 12.5).frames == 13
    assert numbers(read_clip(clip, ClipSpec(9, 48, 64, 12.5))) == list(range(0, 18, 2))


@needs_ffmpeg
def test_training_takes_clips_of_every_known_suffix(tmp_path, capsys):
    logging.getLogger("mlx_cogvideo").handlers.clear()
    source = grays(tmp_path / "x.mp4", 9, 8, "-c:v", "libx264")
    for suffix in CLIPS:
        shutil.copy(source, tmp_path / f"clip{suffix}")
        (tmp_path / "clip.txt").write_text("a gray field")
    paths = [f"--data={tmp_path}", f"--adapter-path={tmp_path / 'x'}"]
    assert lora([*paths, "--frames=9", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert all(f"clip{suffix}: 9 frames of " in listed for suffix in CLIPS)


def moving(path: Path) -> Path:
    """Writes an animation of three grays, at 8 frames a second."""
    frames = [Image.new("RGB", (64, 48), (level,) * 3) for level in (20, 120, 220)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    form = "PNG" if path.suffix == ".apng" else None
    frames[0].save(
        path, form, save_all=True, append_images=frames[1:], duration=125, loop=0, **options
    )
    return path


@pytest.mark.parametrize("suffix", ["gif", "apng", "png", "avif"])
def test_an_animation_is_a_clip_and_its_first_frame_a_picture(tmp_path, suffix):
    path = moving(tmp_path / f"a.{suffix}")
    assert measure(path, 8).frames == 3
    levels = read_clip(path, ClipSpec(3, 48, 64, 8)).mean((1, 2, 3))
    assert np.abs(levels - (20, 120, 220)).max() < 3
    assert abs(read_image(path, 48, 64).mean() - 20) < 3


def test_an_animated_webp_is_refused_as_what_it_is(tmp_path):
    path = moving(tmp_path / "a.webp")
    for read in (lambda: measure(path, 8), lambda: read_image(path, 48, 64)):
        with pytest.raises(InvalidInputError, match="is an animated WEBP: make a GIF or mp4"):
            read()


@pytest.mark.parametrize("suffix", sorted(IMAGES - {".heic", ".heif"}))
def test_pictures_of_every_known_suffix_are_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (64, 48), (200, 60, 20)).save(path, "JPEG" if suffix == ".jfif" else None)
    assert np.abs(read_image(path, 48, 64) - np.array([200.0, 60, 20])).max() < 6


def test_a_picture_of_several_parts_is_refused(tmp_path):
    Image.new("RGBA", (64, 48), (200, 60, 20, 128)).save(tmp_path / "a.avif")
    with pytest.raises(InvalidInputError, match=r"picture of 2 parts .*make a JPEG or PNG of it"):
        read_image(tmp_path / "a.avif", 48, 64)


def test_a_heic_is_converted_where_the_system_can(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48), (200, 60, 20)).save(tmp_path / "seen.png")
    program, said = tmp_path / "sips", tmp_path / "said"
    copy = f'echo "$@" >> {said}; while [ $# -gt 1 ]; do shift; done; cp {tmp_path}/seen.png "$1"'
    program.write_text(f"#!/bin/sh\n{copy}\n")
    program.chmod(0o755)
    monkeypatch.setattr(stills, "SIPS", program)
    photo = tmp_path / "IMG_1.HEIC"
    photo.write_bytes(b"heic")
    assert (read_image(photo, 48, 64) == (200, 60, 20)).all()
    assert measure(photo, 8, kind="picture").height == 48
    assert said.read_text().startswith("-s format png -m ")
    assert f" {photo} --out " in said.read_text()
    program.write_text("#!/bin/sh\necho Error: not a valid file\n")
    with pytest.raises(InvalidInputError, match=r"can't be converted by .*sips: make a JPEG"):
        read_image(photo, 48, 64)


@pytest.mark.parametrize("name", ["a%03d.png", "a*.png", "a?01.png", "{a}.png", "12:30.png"])
def test_a_name_is_no_pattern(tmp_path, name):
    Image.new("RGB", (64, 48), (255, 0, 0)).save(tmp_path / "a001.png")
    Image.new("RGB", (64, 48), (0, 0, 255)).save(tmp_path / name)
    assert (read_image(tmp_path / name, 48, 64) == (0, 0, 255)).all()


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.mp4"))
        for path in (*tmp_path.iterdir(), Path("/dev/zero")):
            if path.name != "b.mp4":
                with pytest.raises(InvalidInputError, match="is not a file but a folder or pipe"):
                    measure(path, 8)
            with pytest.raises(InvalidInputError, match="not a file but a folder or pipe"):
                read_video(path)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="a lease is what makes opening wait")
def test_a_file_that_does_not_answer_is_given_up(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, make_clip(9), 8)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(
            InvalidInputError, match=r"a.mp4 doesn't answer: nothing came for 0.2 s"
        ):
            measure(path, 8, timeout=0.2)
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)
    assert measure(path, 8, timeout=5).frames == 9


def test_a_file_that_stops_to_answer_is_given_up(tmp_path, monkeypatch):
    path, gone = tmp_path / "a.mp4", threading.Event()
    write_video(path, make_clip(9), 8)
    monkeypatch.setattr("mlx_cogvideo.video.clip.fitted", lambda *_: gone.wait(5))
    with pytest.raises(InvalidInputError, match=r"doesn't answer: nothing came for 0.1 s"):
        read_clip(path, ClipSpec(9, 48, 64, 8), timeout=0.1)
    gone.set()


def test_a_slow_clip_that_goes_on_answering_is_read(tmp_path, monkeypatch):
    path, pause = tmp_path / "a.mp4", threading.Event()
    write_video(path, make_clip(9), 8)

    def slow(frame, *_):
        pause.wait(0.03)
        return frame.to_ndarray(format="rgb24")

    monkeypatch.setattr("mlx_cogvideo.video.clip.fitted", slow)
    assert len(read_clip(path, ClipSpec(9, 48, 64, 8), timeout=0.15)) == 9


@needs_ffmpeg
def test_a_frame_that_theora_repeats_without_data_is_read(tmp_path):
    freeze = "select=not(mod(n\\,8)),loop=2:1:0,setpts=N/8/TB"
    codec = ["-c:v", "libtheora", "-q:v", 10, "-f", "ogg"]
    clip = grays(tmp_path / "a.ogv", 17, 8, "-vf", freeze, *codec)
    with av.open(str(clip)) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.pts is not None]
    assert 0 in sizes
    assert numbers(read_clip(clip, ClipSpec(5, 48, 64, 8))) == [0, 0, 0, 8, 16]


PLAYLISTS = {
    "list.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\nclip.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_other_file(tmp_path, name):
    write_video(tmp_path / "clip.mp4", make_clip(9), 8)
    (tmp_path / name).write_text(PLAYLISTS[name])
    for read in (lambda path: measure(path, 8), read_video):
        with pytest.raises(InvalidInputError, match="is a playlist"):
            read(tmp_path / name)


def test_a_clip_in_an_unknown_codec_is_refused(tmp_path):
    write_video(tmp_path / "clip.mp4", make_clip(9), 8)
    clip = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(clip.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    for read in (lambda path: measure(path, 8), read_video):
        with pytest.raises(InvalidInputError, match="in a codec that FFmpeg doesn't know"):
            read(tmp_path / "clip.mp4")
