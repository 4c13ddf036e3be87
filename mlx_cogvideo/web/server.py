"""The server: one application of the API and the page, behind the guard, until it is stopped."""

import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from ..cli.common import say
from ..errors import CogVideoXError, InvalidInputError, OutputError
from ..files import allow_more_files, locked
from ..version import __version__
from .api import Api, refused
from .connections import PromptHeads
from .home import Home, open_home
from .hosts import Hosts, hosts_of, is_loopback, own_address
from .jobs import RUNNING, JobStore
from .reference import POLICY, reference_page
from .refusals import Refusal, hide
from .runner import Runner
from .safety import Guard, Limits
from .service import Service
from .starting import Starting
from .uploads import clear_uploads

_MOST_CONNECTIONS = 1_000


def make_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Hosts | None = None,
    page: bool = False,
    limits: Limits | None = None,
) -> FastAPI:
    """Makes the application.

    Args:
        token: what clients must know, or None.
        hosts: the names of the server; None means those of this machine itself.
        page: whether it has the page, which needs gradio.
        limits: of requests.
    """
    app = FastAPI(
        title="mlx-cogvideo",
        version=__version__,
        description="Videos by CogVideoX on this machine, in the form of OpenAI's API.",
        docs_url=None,  # they load scripts from another host
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for kind in (Refusal, CogVideoXError):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.include_router(Api(service).router())
    app.add_api_route("/docs", _docs_of(app), include_in_schema=False)
    if page:
        from .page import add_page

        app = add_page(app, service)
    else:
        app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    hide(service.home.folder)
    app.add_middleware(
        Guard,
        hosts=hosts or hosts_of("127.0.0.1"),
        token=token,
        folder=service.home.uploads,
        limits=limits,
    )
    return app


def _docs_of(app: FastAPI) -> Callable[[], HTMLResponse]:
    def docs() -> HTMLResponse:
        page = reference_page(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    return docs


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    words = {404: "there is nothing here: see /docs", 405: "this method isn't for this address"}
    return Refusal(error.status_code, words.get(error.status_code, str(error.detail))).response()


def _wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return Refusal(400, f"{name}: {first['msg']}", param=name).response()


def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Refusal(400, "the request was cut off").response()


def serve(
    *,
    folder: str,
    host: str,
    port: int,
    token: str | None,
    most_queued: int,
    page: bool,
    ready: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serves until Ctrl-C, then stops the running job after its step.

    Args:
        folder: where everything is kept.
        host, port: the address; port 0 takes a free one.
        token: what clients must know; None makes one where other machines reach the host.
        most_queued: jobs that may wait.
        page: whether there is the page beside the API.
        ready: called with the address to open once all of it answers.

    Raises:
        OutputError: the folder can't be used, or another server uses it.
        InvalidInputError: the address can't be used.
    """
    home = open_home(folder)
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    with _alone(home), closing(_bind(host, port)) as listener:
        allow_more_files()
        clear_uploads(home)
        runner = Runner(JobStore(home, most_queued))
        starting = Starting()
        runner.start()
        with _closed_at_the_end(runner), _serving(starting, listener) as thread:
            service = Service(home, runner)
            app = make_app(service, token=token, hosts=hosts_of(host), page=page)
            starting.hand_over(app)
            port = listener.getsockname()[1]
            url = _url(host, port, token)
            say(_welcome(host, port, token, page))
            home.address.write_text(_url(host, port, None), encoding="utf-8")
            ready(url)
            thread.join()
            raise OutputError("the server has ended: the lines above say why")


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Has one server at a time use the folder; raises OutputError where another one does."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(home.serving, "choose another --folder"))
        except OutputError:
            address = ""
            with suppress(OSError, UnicodeDecodeError):
                address = home.address.read_text(encoding="utf-8")
            if not address:
                raise
            raise OutputError(
                f"the server is running already, at {address}: open that, or choose another "
                "--folder and --port"
            ) from None
        home.address.unlink(missing_ok=True)
        held.callback(home.address.unlink, missing_ok=True)
        yield


def _welcome(host: str, port: int, token: str | None, page: bool) -> str:
    url = _url(host, port, token)
    what = "the page is at" if page else "the API is at"
    if is_loopback(host):
        return f"{what} {url} (Ctrl-C stops the server)"
    own = own_address() if host == "0.0.0.0" else None
    also = f" or {_url(own, port, token)}" if own else ""
    return f"{what} {url}{also}, for machines of your network that know this token, without HTTPS"


def _url(host: str, port: int, token: str | None) -> str:
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    return f"http://{name}:{port}/" + (f"?token={quote(token)}" if token else "")


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises CogVideoXError."""
    unknown = InvalidInputError(f"--host {host} is no address of this machine")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise unknown from None
    family, *_, address = sorted(found, key=lambda each: each[0] != socket.AF_INET)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise unknown from None
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"port {port} is taken by another program: choose another --port"
            ) from None
        words = os.strerror(error.errno or 0)
        raise OutputError(f"port {port} of {host} can't be used: {words}") from None


@contextmanager
def _serving(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Serves in a thread, so that signals are handled as in the other commands."""
    config = uvicorn.Config(
        app,
        http=PromptHeads,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        limit_concurrency=_MOST_CONNECTIONS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True
    )
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def _closed_at_the_end(runner: Runner) -> Iterator[None]:
    """Has the running job stop after its step at the first Ctrl-C, and at once at the second."""
    try:
        yield
    except KeyboardInterrupt:
        if any(job.state == RUNNING for job in runner.store.all()):
            say("stopping: the running job is saved after its step (Ctrl-C again: at once)")
        closer = threading.Thread(target=runner.close, name="closing")
        closer.start()
        while closer.is_alive():
            try:
                closer.join()
            except KeyboardInterrupt:
                runner.hurry()
        say("stopped; jobs that aren't finished go on at the next start")
    except BaseException:
        runner.close()
        raise
