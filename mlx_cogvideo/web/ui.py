"""``mlx-cogvideo ui``: the page in the browser, and the HTTP API."""

import webbrowser
from collections.abc import Sequence

from ..cli.common import run
from ..cli.json_events import JsonEvents
from ..cli.parser import Parser
from .commands import add_server_options, check_extra, server_options

DESCRIPTION = """\
Open a page in the browser on which videos are made, watched, stopped, resumed
and made again. The HTTP API of the command serve is there, too.
"""
EXAMPLES = """\
examples:
  %(prog)s
      open the page of a server on this machine
  %(prog)s --no-browser --host 0.0.0.0
      serve the page to the local network; the address to open is printed
  %(prog)s --port 8000 --folder /Volumes/Disk/videos
      use another port, and keep everything on another disk
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run(_ui, arguments)


def _ui(arguments: Sequence[str], events: JsonEvents) -> None:
    args = make_parser().parse_args(arguments)
    check_extra("the page")
    from .server import serve

    options = {"ready": webbrowser.open} if args.browser else {}
    serve(**server_options(args), page=True, **options)


def make_parser() -> Parser:
    parser = Parser("ui", lone="--folder", description=DESCRIPTION, epilog=EXAMPLES)
    add_server_options(parser)
    parser.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="don't open the page in the browser",
    )
    return parser
