"""More frames a second: frames between those of a video, computed while it is written."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from ..errors import InvalidInputError, OutputError

FACTORS = (1, 2, 3)
"""How many times the frames a second can become; 1 leaves them as they are."""

# Motion in both directions, and overlapped blocks. Nothing is moved across a cut: a mean difference
# of a fifth of the range that comes at once. A tenth, the default, takes fast motion for one.
_OPTIONS = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:scd=fdiff:scd_threshold=20"
_FORMAT = "yuv444p"
"""The filter takes no RGB. All colours and the full range lose 1 or 2 of 255 levels at most."""
_SHORTEST_SIDE = 32  # two blocks


class Interpolator(Protocol):
    """Puts frames between those that it is given, as they come.

    Attributes:
        factor: times the frames a second. Of N frames it makes ``(N - 1) * factor + 1``: the first
            and the last stay where they are.
    """

    factor: int

    def add(self, frame: np.ndarray) -> Iterator[np.ndarray]:
        """Takes the next frame, uint8 ``[H, W, 3]``, and yields those that are ready."""
        ...

    def end(self) -> Iterator[np.ndarray]:
        """Yields the remaining frames after the last one."""
        ...


class MotionInterpolator:
    """Moves blocks of pixels along their motion: FFmpeg's filter ``minterpolate``.

    The frames that it is given come out unchanged. Memory: five frames, and 300 bytes a pixel.
    """

    def __init__(self, factor: int):
        """
        Raises:
            InvalidInputError: `factor` isn't 2 or 3.
        """
        if factor not in FACTORS[1:]:
            raise InvalidInputError(f"interpolate must be 1, 2 or 3; got {factor!r}")
        self.factor = factor
        self._count = 0
        self._given: deque[np.ndarray] = deque()
        self._graph: av.filter.Graph | None = None

    def add(self, frame: np.ndarray) -> Iterator[np.ndarray]:
        """See ``Interpolator``; raises InvalidInputError for frames that are too small."""
        if self._graph is None:
            check_size(*frame.shape[:2])
            self._graph = _graph(*frame.shape[:2], self.factor)
        self._given.append(frame)
        self._push(frame)
        yield from self._ready()

    def end(self) -> Iterator[np.ndarray]:
        if self._graph is None:
            return
        # The filter looks one frame ahead and drops what it can't: the last frame comes twice.
        self._push(self._given[-1])
        yield from self._ready()
        self._graph.vpush(None)
        yield from self._ready()
        if self._count == 2:  # too few for the filter
            yield self._given.popleft()
        elif self._given:
            raise OutputError("FFmpeg's minterpolate lost frames: leave out interpolate")

    def _push(self, frame: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format=_FORMAT, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.JPEG
        )
        picture.pts, picture.time_base = self._count, Fraction(1)
        self._count += 1
        self._graph.vpush(picture)

    def _ready(self) -> Iterator[np.ndarray]:
        """Yields what comes out of the graph, up to the last given frame."""
        while self._given:
            try:
                picture = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            if picture.pts % self.factor == 0:
                yield self._given.popleft()
            else:
                yield picture.reformat(
                    format="rgb24",
                    src_colorspace=Colorspace.ITU709,
                    src_color_range=ColorRange.JPEG,
                ).to_ndarray()


def make_interpolator(factor: int) -> Interpolator | None:
    """The interpolator for a factor of `FACTORS`; None for 1, which needs none.

    Raises:
        InvalidInputError: it is another factor.
    """
    return None if factor == 1 else MotionInterpolator(factor)


def check_size(height: int, width: int) -> None:
    """Raises InvalidInputError for frames in which no motion can be found."""
    if min(height, width) < _SHORTEST_SIDE:
        raise InvalidInputError(
            f"interpolate needs frames of at least {_SHORTEST_SIDE} pixels a side; got "
            f"{width}x{height}"
        )


def _graph(height: int, width: int, factor: int) -> av.filter.Graph:
    """A filter graph that takes a frame each second and gives `factor` of them."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat(_FORMAT), time_base=Fraction(1)
    )
    between = graph.add("minterpolate", f"fps={factor}:{_OPTIONS}")
    source.link_to(between)
    between.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
