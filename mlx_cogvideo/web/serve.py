"""``mlx-cogvideo serve``: the HTTP API without the page."""

from collections.abc import Sequence

from ..cli.common import run
from ..cli.json_events import JsonEvents
from ..cli.parser import Parser
from .commands import add_server_options, check_extra, server_options

DESCRIPTION = """\
Serve videos over HTTP, in the form of OpenAI's videos API: requests are queued,
and made one after another. /docs on the server describes it.
"""
EXAMPLES = """\
examples:
  %(prog)s
      serve this machine on http://127.0.0.1:7860
  %(prog)s --host 0.0.0.0 --port 8000
      serve the local network; the token that clients need is printed
  %(prog)s --folder /Volumes/Disk/videos --most-queued 10
      keep everything on another disk, and let ten jobs wait at most
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return run(_serve, arguments)


def _serve(arguments: Sequence[str], events: JsonEvents) -> None:
    args = make_parser().parse_args(arguments)
    check_extra("the server")
    from .server import serve

    serve(**server_options(args), page=False)


def make_parser() -> Parser:
    parser = Parser("serve", lone="--folder", description=DESCRIPTION, epilog=EXAMPLES)
    add_server_options(parser)
    return parser
