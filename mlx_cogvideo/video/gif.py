"""Animated GIFs with a palette of 256 colours for each frame."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from .comments import add_gif_comment
from .paths import GIF, ffmpeg_name
from .writer import FrameWriter, as_video_frame

# Browsers slow a delay of 0.01 s down to 0.1 s, so that 0.02 s is the shortest of any use.
MAX_FPS = 50
# The error diffusion of FFmpeg that leaves the least pattern. Ordered dithers leave bands in frames
# with more than 256 colours.
DITHER = "sierra2_4a"


class GifWriter(FrameWriter):
    """Writes a GIF that loops forever, with the record in a comment extension.

    GIF counts time in hundredths of a second: at 8 frames per second the delays alternate between
    12 and 13 of them.
    """

    form = GIF

    def __init__(
        self,
        path: str | Path,
        fps: int | float | Fraction,
        *,
        overwrite: bool = False,
        interpolate: int = 1,
    ) -> None:
        """As for ``FrameWriter``, and the file has at most 50 frames per second."""
        super().__init__(path, fps, overwrite=overwrite, interpolate=interpolate)
        if self.fps > MAX_FPS:
            raise InvalidInputError(
                f"a gif can have {MAX_FPS} frames a second at most; got {float(self.fps):g}: "
                "write an mp4"
            )

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(ffmpeg_name(self._part), "w", format="gif", options={"loop": "0"})
        self._stream = self._container.add_stream("gif", rate=self.fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "pal8"
        self._graph = _palette_graph(height, width, self.fps)
        self._count = 0

    def _add(self, frame: np.ndarray) -> None:
        picture = as_video_frame(frame)
        picture.pts, picture.time_base = self._count, 1 / self.fps
        self._count += 1
        self._graph.vpush(picture)
        self._encode_ready()

    def _finish(self) -> None:
        self._graph.vpush(None)
        self._encode_ready()
        super()._finish()

    def _store(self, part: Path, comment: str) -> None:
        add_gif_comment(part, comment.encode())

    def _encode_ready(self) -> None:
        """Encodes what comes out of the graph until it waits for more or has ended."""
        while True:
            try:
                picture = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            self._container.mux(self._stream.encode(picture))


def _palette_graph(height: int, width: int, fps: Fraction) -> av.filter.Graph:
    """A filter graph from RGB to 256 colours; one of its two branches makes a frame's palette."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / fps
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", f"new=1:dither={DITHER}")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
