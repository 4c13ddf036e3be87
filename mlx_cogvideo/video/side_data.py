"""Reads what FFmpeg keeps beside the pixels of a frame: display matrices and colour profiles."""

import gc
from functools import lru_cache
from threading import get_ident

import av

# AVFrameSideDataType of FFmpeg 8, and room for more.
DISPLAY_MATRIX, ICC_PROFILE = 6, 15
_TYPES = range(48)


def side_data(frame: av.VideoFrame, kind: int) -> bytes | None:
    """The side data of a frame of one kind, `DISPLAY_MATRIX` or `ICC_PROFILE`; None without any.

    All other kinds are removed before PyAV lists them. It can't list EXIF data, and it frees the
    name of a PNG's colour profile twice, so that `ICC_PROFILE` of a PNG must not be read.
    """
    graph = _graph(get_ident(), kind, frame.width, frame.height, frame.format.name)
    graph.vpush(frame)
    try:
        found, *_ = map(bytes, graph.vpull().side_data)
    except av.BlockingIOError:  # the graph waits for another frame
        return None
    # PyAV's frames and their side data refer to each other, which would keep the pixels.
    gc.collect(0)
    return found


@lru_cache(maxsize=4)
def _graph(thread: int, kind: int, width: int, height: int, form: str) -> av.filter.Graph:
    """A graph that passes on frames with side data of one kind, and takes all others off them.

    It is for one thread, since it has a state.
    """
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(width=width, height=height, format=form, time_base=1),
        graph.add("sidedata", f"mode=select:type={kind}"),
        *(graph.add("sidedata", f"mode=delete:type={other}") for other in _TYPES if other != kind),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph
