"""A server that answers before its application is made."""

import socket
from contextlib import asynccontextmanager, contextmanager

import pytest

pytest.importorskip("gradio", reason="the server needs the extra ui")

import httpx
from fastapi import FastAPI

from mlx_cogvideo.web import server
from mlx_cogvideo.web.starting import Starting


@contextmanager
def served(starting: Starting):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with server._serving(starting, listener), httpx.Client(base_url=address) as client:
            yield client


def test_it_says_that_it_starts_and_then_hands_over():
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        seen.append("begin")
        yield
        seen.append("end")

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/health", lambda: {"status": "ok"})
    starting = Starting()
    with served(starting) as client:
        assert client.get("/health").json() == {"status": "starting"}
        page = client.get("/")
        assert page.status_code == 503 and 'http-equiv="refresh"' in page.text
        answer = client.post("/v1/videos", json={})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "starting"
        assert int(answer.headers["retry-after"]) and not seen
        starting.hand_over(app)
        assert seen == ["begin"]
        assert client.get("/health").json() == {"status": "ok"}
    assert seen == ["begin", "end"]


def test_an_application_that_fails_to_start_is_reported():
    @asynccontextmanager
    async def lifespan(app):
        raise OSError("no")
        yield

    starting = Starting()
    with served(starting) as client:
        with pytest.raises(RuntimeError):
            starting.hand_over(FastAPI(lifespan=lifespan))
        assert client.get("/health").json() == {"status": "starting"}
