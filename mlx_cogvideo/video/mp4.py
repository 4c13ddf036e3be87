"""Writes mp4 files that every player opens.

They are H.264 in yuv420p with BT.709 colours. The index comes first (faststart), so that a browser
starts to play before it has the whole file.
"""

import logging
import platform
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from ..files import remove_temporary, temporary_path
from .paths import MP4, ffmpeg_name
from .writer import FrameWriter, as_video_frame

# Visually lossless for most clips; x264's own default of 23 is meant for streaming.
OPTIONS = {"crf": "18"}
if platform.machine() in ("x86_64", "AMD64"):
    # x264's AVX-512 code for macroblock trees reads memory that it hasn't written. In sizes such as
    # 96x96 and 1360x768 the same frames then give another file each time. Without macroblock trees
    # files are up to 40 % larger.
    OPTIONS["x264-params"] = "mbtree=0"
# Codes of ITU-T H.273: primaries, transfer curve and matrix share a number; luma is 16 to 235.
BT709 = 1
LIMITED_RANGE = 1

logger = logging.getLogger(__name__)


class VideoWriter(FrameWriter):
    """Writes an mp4, with the record in its ``comment`` tag.

    The last row or column of a frame with an odd height or width is repeated.
    """

    form = MP4

    def _open(self, height: int, width: int) -> None:
        even_height, even_width = height + height % 2, width + width % 2
        if (even_height, even_width) != (height, width):
            logger.warning(
                "an mp4 needs an even height and width: the last row or column is repeated to "
                f"make {height}x{width} {even_height}x{even_width}"
            )
        self._container = _new_container(self._part)
        stream = self._container.add_stream("libx264", rate=self.fps, options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = even_height, even_width, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        self._stream = stream

    def _add(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = as_video_frame(frame).reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(picture))

    def _store(self, part: Path, comment: str) -> None:
        """Copies the finished stream into a file with the comment.

        Tags are written with the header, before the first frame, and the record isn't known
        before the last.
        """
        tagged = temporary_path(self.path)
        try:
            with av.open(ffmpeg_name(part)) as source, _new_container(tagged) as target:
                target.metadata["comment"] = comment
                stream = source.streams.video[0]
                copied = target.add_stream_from_template(stream)
                # PyAV 17 would count in 1/90000 s and round the times.
                copied.time_base = stream.time_base
                for packet in source.demux(stream):
                    if packet.dts is not None:  # the last one is empty and only says so
                        packet.stream = copied
                        target.mux(packet)
            tagged.replace(part)
        except BaseException:
            remove_temporary(tagged)
            raise


def _new_container(path: Path) -> av.container.OutputContainer:
    return av.open(ffmpeg_name(path), "w", format="mp4", options={"movflags": "+faststart"})
