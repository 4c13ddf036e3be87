"""Decodes the frames of a clip as players show them: deinterlaced, and with their transparency."""

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import av

from .colors import check_readable, foreign_colors
from .reader import stored_frames, video_stream
from .stalls import answered

logger = logging.getLogger(__name__)

# FFmpeg's own decoders of these codecs leave out the transparency.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# What a codec that says nothing about colours has for these attributes of its frames.
_UNSPECIFIED = {"color_primaries": 2, "color_trc": 2, "colorspace": 2, "color_range": 0}


def decoded(
    container: av.container.InputContainer, name: Path
) -> Iterator[tuple[av.VideoFrame, bool]]:
    """The frames of a clip in the order in which they are shown.

    Says once of a clip that it is deinterlaced here, or that its colours will be converted.

    Args:
        name: the clip or picture, for messages.

    Yields:
        A frame, and whether it is whole: neither it nor one that it may depend on is damaged.

    Raises:
        InvalidInputError: the colours of the first frame can't be read.
    """
    stream = video_stream(container)
    if stream.codec_context.name == "mjpeg":  # else what is missing is gray
        stream.codec_context.options = {"err_detect": "explode"}
    is_whole = is_first = True
    for frame in _deinterlaced(_frames(container, stream), name):
        if is_first:
            check_readable(frame, name)
            if colors := foreign_colors(frame):
                _say(f"{name} is in {colors.name}: it is converted to SDR (BT.709)")
        is_first = False
        is_whole = not frame.is_corrupt and (is_whole or frame.key_frame)
        yield frame, is_whole


@cache
def _say(message: str) -> None:
    """Logs a message, in this process once."""
    logger.info(message)


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """The decoded frames, with the container's tags of colours where the codec has none."""
    tags = {name: getattr(stream.codec_context, name) for name in _UNSPECIFIED}
    for frame in _decoded(container, stream):
        for name, unspecified in _UNSPECIFIED.items():
            if getattr(frame, name) == unspecified:
                setattr(frame, name, tags[name])
        yield frame


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    decoder = _ALPHA_DECODERS.get(stream.codec_context.name)
    tags = {tag.lower(): text for tag, text in stream.metadata.items()}
    if tags.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from stored_frames(container)
        return
    context = av.CodecContext.create(decoder, "r")
    for packet in container.demux(stream):
        answered()
        yield from context.decode(packet)


def _deinterlaced(frames: Iterable[av.VideoFrame], name: Path) -> Iterator[av.VideoFrame]:
    """Makes whole pictures of two fields; progressive frames stay as they are."""
    graph = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None:
            _say(f"{name} is interlaced: it is deinterlaced")
            graph = _field_filter(frame)
        graph.vpush(frame)
        yield from _ready(graph, frame)
    if graph is not None:
        graph.vpush(None)
        yield from _ready(graph, frame)


def _field_filter(frame: av.VideoFrame) -> av.filter.Graph:
    """A graph that gives one frame for each, and changes only frames that are interlaced."""
    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    source = graph.add_buffer(**size, format=frame.format, time_base=frame.time_base)
    fields = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, fields, graph.add("buffersink")).configure()
    return graph


def _ready(graph: av.filter.Graph, like: av.VideoFrame) -> Iterator[av.VideoFrame]:
    """What comes out of the graph until it waits or has ended, in the time base of `like`."""
    while True:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        if frame.pts is not None:  # the filter halves the time base
            frame.pts = round(frame.pts * frame.time_base / like.time_base)
        frame.time_base = like.time_base
        yield frame
