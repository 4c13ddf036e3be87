"""What ``mlx-cogvideo ui`` and ``mlx-cogvideo serve`` share."""

import argparse
from importlib.util import find_spec

from ..cli.common import at_least_one, with_help
from ..cli.parser import Parser
from ..errors import CogVideoXError, InvalidInputError
from .home import DEFAULT

PORT = 7860
EXTRA = "mlx_cogvideo[ui] @ git+https://github.com/mlx-cogvideo/mlx_cogvideo"
"""What pip installs the packages with that a server needs."""
_LEAST_TOKEN = 8
_HELP = {
    "--port": f"port to listen on; 0 takes a free one (default: {PORT})",
    "--host": "address to listen on; any other than this machine's own needs a token, and one is "
    "made if --token gives none (default: 127.0.0.1, which no other machine reaches)",
    "--token": "password of at least 8 characters that clients must send (default: none on "
    "127.0.0.1)",
    "--folder": f"folder of jobs, videos, adapters and models (default: {DEFAULT})",
    "--most-queued": "number of jobs that may wait (default: 100)",
}


def add_server_options(parser: Parser) -> None:
    """Adds the options of a server."""
    add = with_help(parser, _HELP)
    add("--port", type=_port, default=PORT, metavar="N")
    add("--host", default="127.0.0.1", metavar="ADDRESS")
    add("--token", type=_token, metavar="TEXT")
    add("--folder", default=DEFAULT, metavar="FOLDER")
    add("--most-queued", type=at_least_one, default=100, metavar="N")


def check_extra(what: str) -> None:
    """Raises CogVideoXError, with what to install, if the packages of the extra are missing."""
    if any(find_spec(name) is None for name in ("gradio", "fastapi", "uvicorn")):
        raise CogVideoXError(f'{what} needs gradio: pip install "{EXTRA}"')


def server_options(args: argparse.Namespace) -> dict[str, object]:
    """The options as arguments of ``server.serve``."""
    if not args.host:
        raise InvalidInputError("--host must be an address, such as 127.0.0.1")
    return {
        name: getattr(args, name) for name in ("folder", "host", "port", "token", "most_queued")
    }


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {text}")
    return port


def _token(text: str) -> str:
    if len(text) < _LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError(
            f"must have at least {_LEAST_TOKEN} letters, digits and signs, and no spaces"
        )
    return text
