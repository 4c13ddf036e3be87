"""Videos on disk: mp4, gif, folders of PNG frames and latents, each with a record inside."""

from .clip import FITS, ClipInfo, ClipSpec, content_digest, measure, read_clip, read_image
from .gif import GifWriter
from .metadata import read_record
from .mp4 import VideoWriter
from .outputs import open_writer, write_latents, write_video
from .paths import check_output_path
from .png import PngWriter
from .reader import read_frames, read_video
from .writer import FrameWriter

__all__ = [
    "FITS",
    "ClipInfo",
    "ClipSpec",
    "FrameWriter",
    "GifWriter",
    "PngWriter",
    "VideoWriter",
    "check_output_path",
    "content_digest",
    "measure",
    "open_writer",
    "read_clip",
    "read_frames",
    "read_image",
    "read_record",
    "read_video",
    "write_latents",
    "write_video",
]
