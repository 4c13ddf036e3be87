"""Reads what FFmpeg keeps beside the pixels of a frame: display matrices and colour profiles."""

import av

# AVFrameSideDataType of FFmpeg 8, and room for more.
DISPLAY_MATRIX, ICC_PROFILE = 6, 15
_TYPES = range(48)


def side_data(frame: av.VideoFrame, kind: int) -> bytes | None:
    """The side data of a frame of one kind, `DISPLAY_MATRIX` or `ICC_PROFILE`; None without any.

    All other kinds are removed before PyAV lists them. It can't list EXIF data, and it frees the
    name of a PNG's colour profile twice, so that `ICC_PROFILE` of a PNG must not be read.
    """
    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    nodes = [
        graph.add_buffer(**size, format=frame.format, time_base=1),
        *(graph.add("sidedata", f"mode=delete:type={other}") for other in _TYPES if other != kind),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    graph.vpush(frame)
    found = [bytes(data) for data in graph.vpull().side_data]
    return found[0] if found else None
