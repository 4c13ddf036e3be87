"""What the server refuses: other names and pages, unknown tokens, wrong and large requests."""

import base64
import json
import random
import re
import resource
import socket
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("gradio", reason="the server needs the extra ui")

import httpx
from api_server import QUICK, serving, until

from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.web import service
from mlx_cogvideo.web.hosts import hosts_of
from mlx_cogvideo.web.planning import Estimate
from mlx_cogvideo.web.refusals import without_paths
from mlx_cogvideo.web.safety import MIB, Limits
from mlx_cogvideo.web.uploads import check_media

TOKEN = "correct-horse"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATH = re.compile(r"(?<![\w/:.])/(?:tmp|root|home|Users|usr|etc|var|private|opt|work)\b")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token and low limits, whose jobs wait."""
    limits = Limits(upload=4 * MIB, json=2 * MIB, body=MIB // 4, uploads=2, stall=0.5, rate=2**16)
    folder = tmp_path_factory.mktemp("guarded")
    with serving(folder, token=TOKEN, limits=limits, most_queued=10_000) as client:
        yield client


def code_of(answer: httpx.Response) -> str | None:
    return answer.json()["error"]["code"]


def raw(client, *parts: bytes, finish: bool = True) -> bytes:
    """Sends bytes to the server; returns all that it answers."""
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(2**16):
            answer += piece
    return answer


def head(client, *lines: str, path: str = "/v1/videos") -> bytes:
    """The head of a request that has the token."""
    host = f"{client.base_url.host}:{client.base_url.port}"
    fixed = f"POST {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}"
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("listens", "host", "allowed"),
    [
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "[::1]:1", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "192.168.1.5:7860", False),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example:7860", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "localhost:7860@evil.example", False),
        ("mac.local", "mac.local:7860", True),
        ("192.168.1.5", "192.168.1.5:7860", True),
        ("0.0.0.0", "192.168.1.5:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", "evil.example", False),
    ],
)
def test_names_of_the_server(listens, host, allowed):
    assert hosts_of(listens).allow(host) == allowed


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Origin": "http://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Origin": "http://[::1"}, "wrong_origin"),
        ({"Origin": "http://localhost:1"}, "wrong_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "wrong_origin"),
        ({"Sec-Fetch-Site": "same-site"}, "wrong_origin"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "wrong_origin"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_pages_can_neither_read_nor_write(idle, headers, code, method):
    answer = idle.request(method, "/v1/videos", headers=headers)
    assert (answer.status_code, code_of(answer)) == (403, code)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_own_page_and_links_to_it_are_served(idle):
    own = {"Origin": str(idle.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert idle.get("/v1/videos", headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert idle.get("/docs", headers=link | {"Sec-Fetch-Dest": "document"}).status_code == 200
    assert idle.get("/docs", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_answers_say_how_browsers_may_use_them(idle):
    for path in ("/docs", "/v1/videos", "/nothing"):
        headers = idle.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer x", "Bearer wrong", f"Basic {TOKEN}", "Bearer é"]
)
@pytest.mark.parametrize("path", ["/v1/videos", "/docs", "/", "/openapi.json", "/gradio_api/x"])
def test_nothing_is_open_without_the_token(guarded, authorization, path):
    headers = {"Authorization": authorization.encode()}
    answer = guarded.get(path, headers=headers)
    assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key")


def test_the_token_opens_the_api(guarded):
    assert guarded.get("/v1/videos", headers=BEARER).status_code == 200
    assert guarded.get("/health").status_code == 200


def test_a_browser_gets_the_token_once_and_keeps_a_cookie(guarded):
    asked = guarded.get("/docs", headers={"Accept": "text/html"})
    assert asked.status_code == 401 and 'name="token"' in asked.text
    answer = guarded.get("/docs", params={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/docs")
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    value = cookie.partition(";")[0]
    guarded.cookies.clear()
    assert guarded.get("/v1/videos", headers={"Cookie": f"a=b; {value}"}).status_code == 200
    assert guarded.get("/v1/videos", headers={"Cookie": f"{value}0"}).status_code == 401
    assert guarded.get("/docs", params={"token": "wrong"}).status_code == 401
    assert guarded.get("/v1/videos", params={"token": TOKEN}).status_code == 401


def leftovers(client) -> list[Path]:
    return [path for path in client.service.home.uploads.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["/v1/videos", "/gradio_api/upload"])
def test_a_request_that_says_it_is_too_large_is_refused_unread(guarded, path):
    lines = ("Content-Type: multipart/form-data; boundary=b", f"Content-Length: {2 * 2**30}")
    answer = raw(guarded, head(guarded, *lines, path=path))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 4 MiB" in answer
    lines = ("Content-Type: application/json", f"Content-Length: {3 * MIB}")
    assert b"at most 2 MiB" in raw(guarded, head(guarded, *lines, path=path))


def test_a_request_without_a_length_is_cut_off_at_the_limit(guarded):
    def chunks():
        yield b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\n'
        for _ in range(48):
            yield bytes(MIB // 8)

    headers = {"Content-Type": "multipart/form-data; boundary=b", **BEARER}
    answer = guarded.post("/v1/videos", content=chunks(), headers=headers)
    assert (answer.status_code, code_of(answer)) == (413, "too_large")
    assert not leftovers(guarded)


def test_a_body_that_stops_is_answered_and_forgotten(guarded):
    lines = ("Content-Type: multipart/form-data; boundary=b", "Content-Length: 100000")
    part = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\nabc'
    answer = raw(guarded, head(guarded, *lines), part, finish=False)
    assert answer.startswith(b"HTTP/1.1 408 ")
    until(lambda: not leftovers(guarded))


def test_a_cut_off_upload_leaves_nothing(guarded):
    lines = ("Content-Type: multipart/form-data; boundary=b", "Content-Length: 100000")
    part = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\n'
    for cut in range(0, len(part), 7):
        raw(guarded, head(guarded, *lines), part[:cut])
    until(lambda: not leftovers(guarded))
    assert guarded.get("/v1/videos", headers=BEARER).json()["data"] == []


def test_a_damaged_form_is_named(guarded):
    part = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", **BEARER}
    for body in (b"", b"--c--", part, part[:-3] + b"\r\n--b", b"\0" * 1000, part * 300 + b"--b--"):
        answer = guarded.post("/v1/videos", content=body, headers=headers)
        assert (answer.status_code, code_of(answer)) == (400, "bad_form")
    headers["Content-Type"] = "multipart/form-data"
    assert guarded.post("/v1/videos", content=part, headers=headers).status_code == 400


def test_only_some_large_uploads_are_read_at_once(guarded):
    """Two are under way while a third one comes."""
    lines = ("Content-Type: multipart/form-data; boundary=b", f"Content-Length: {2 * MIB}")
    part = b'--b\r\nContent-Disposition: form-data; name="input_reference"; filename="x"\r\n\r\n'
    address = guarded.base_url.host, guarded.base_url.port
    connections = [socket.create_connection(address) for _ in range(2)]
    end = threading.Event()

    def trickle(connection):
        connection.sendall(head(guarded, *lines) + part + bytes(MIB // 2))
        while not end.wait(0.2):  # no slower than the limit of the rate
            connection.sendall(bytes(2**15))

    threads = [threading.Thread(target=trickle, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    try:
        until(lambda: sum(path.stat().st_size > MIB // 3 for path in leftovers(guarded)) == 2)
        file = {"input_reference": bytes(MIB)}
        answer = guarded.post("/v1/videos", data={"prompt": "x"}, files=file, headers=BEARER)
        assert (answer.status_code, code_of(answer)) == (429, "uploads_busy")
        assert int(answer.headers["retry-after"]) > 0
    finally:
        end.set()
        for thread, connection in zip(threads, connections, strict=True):
            thread.join()
            connection.close()
    until(lambda: not leftovers(guarded))
    assert guarded.service.store.all() == []


def test_uploads_leave_room_on_the_disk(tmp_path):
    with serving(tmp_path, limits=Limits(free=2**60)) as client:
        file = {"input_reference": bytes(2 * MIB)}
        answer = client.post("/v1/videos", data={"prompt": "x"}, files=file)
        assert (answer.status_code, code_of(answer)) == (507, "disk_full")
        assert client.post("/v1/videos", json=QUICK).status_code == 200


PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def huge_png(width: int, height: int) -> bytes:
    """The beginning of a picture that says it is large."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    check = zlib.crc32(b"IHDR" + size).to_bytes(4, "big")
    pixels = zlib.compress(bytes(1000))
    data = len(pixels).to_bytes(4, "big") + b"IDAT" + pixels
    return PNG_HEADER + size + check + data + zlib.crc32(b"IDAT" + pixels).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (b"", "another type"),
        (b"MZ\x90\0" * 100, "another type"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "another type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "another type"),
        (b"\xff\xd8\xff" + bytes(100), "0x0 pixels"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "can't be read"),
        (huge_png(16_000, 16_000), "16000x16000 pixels: at most 50 million"),
        (huge_png(60_000, 1), "60000x1 pixels"),
    ],
)
def test_uploads_are_checked_before_they_are_decoded(tmp_path, contents, problem):
    path = tmp_path / "upload"
    path.write_bytes(contents)
    with pytest.raises(InvalidInputError, match=problem) as caught:
        check_media(path)
    assert str(tmp_path) not in str(caught.value)


def test_no_url_is_opened(guarded):
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "data:image/png,abc", "/etc/x"):
        body = {**QUICK, "input_reference": {"image_url": url}}
        answer = guarded.post("/v1/videos", json=body, headers=BEARER)
        assert answer.status_code == 400 and "image_url" in answer.json()["error"]["message"]
    url = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    body["input_reference"]["image_url"] = url
    answer = guarded.post("/v1/videos", json=body, headers=BEARER)
    assert answer.status_code == 400 and not leftovers(guarded)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/etc/passwd is no video", "passwd is no video"),
        ("can't read '/Volumes/a/c.png': x", "can't read 'c.png': x"),
        ("at file:///Users/x/y.png", "at y.png"),
        ("../../videos/a.mp4 exists", "a.mp4 exists"),
        ("~/videos/a and ./b/c", "a and c"),
        (f"{Path.home()}/a/b:no", "b:no"),
        ("see https://a.org/b/c, 1/2 or 8N+1 GB/s", "see https://a.org/b/c, 1/2 or 8N+1 GB/s"),
    ],
)
def test_paths_are_taken_out_of_texts(text, shown):
    assert without_paths(text) == shown


def wrong_requests(count: int) -> list[tuple[str, str, dict]]:
    """Requests that no server should carry out: method, path and arguments of httpx."""
    draw = random.Random(7)
    texts = [
        "../../../etc/passwd", "/etc/passwd", "..%2f..%2fetc", "video_../../x", "<script>", "\0",
        "video_" + "0" * 24, "video_" + "g" * 24, "training_" + "0" * 24, "é" * 50, "a" * 5000,
        "${HOME}", "`id`", "'; DROP", "%00", "~/x", "C:\\x", "-1", "NaN", " ",
    ]  # fmt: skip
    numbers = [-1, 0, 1e308, -1e308, 2**63, 10**19, 0.1, 1.5, True, float("nan"), float("inf")]
    deep = json.loads("[" * 50 + "]" * 50)
    values = [*texts, *numbers, [], {}, [None], {"a": 1}, deep, [[1]], [1, 2, 3], ["x"] * 30]
    fields = [
        "model", "prompt", "size", "seconds", "input_reference", "adapters", "num_frames", "width",
        "height", "num_inference_steps", "extend", "overlap", "guidance_scale", "guidance_range",
        "scheduler", "seed", "tiling", "tile_size", "tile_overlap", "quantize", "dtype", "compile",
        "fps", "cache", "cache_threshold", "dynamic_cfg", "uncond", "strength", "video_start",
        "image", "video", "lora", "output", "__class__",
    ]  # fmt: skip
    allowed = {"prompt", "seconds", "guidance_scale", "seed", "fps", "compile", "dynamic_cfg",
               "num_inference_steps", "negative_prompt", "adapters"}  # fmt: skip
    found: list[tuple[str, str, dict]] = []
    while len(found) < count:
        kind = draw.randrange(6)
        text, value = draw.choice(texts), draw.choice(values)
        if kind == 0:
            method = draw.choice(["GET", "DELETE"])
            path = draw.choice(["", "/content", "/events"]) if method == "GET" else ""
            found.append((method, f"/v1/videos/{quote(text, safe='')}{path}", {}))
        elif kind == 1:
            action = draw.choice(["stop", "resume", "move", "remix"])
            body = json.dumps({"position": value, "prompt": "x"})
            found.append(("POST", f"/v1/videos/{quote(text, safe='')}/{action}", {"content": body}))
        elif kind == 2:
            name = draw.choice([each for each in fields if each not in allowed])
            body = json.dumps({**QUICK, name: value})
            found.append(("POST", "/v1/videos", {"content": body, "headers": _JSON}))
        elif kind == 3:
            content = draw.choice(BAD_JSON)
            found.append(("POST", "/v1/videos", {"content": content, "headers": _JSON}))
        elif kind == 4:
            kinds = ["text/plain", "", "text/html", "application/xml", "multipart/mixed",
                     "application/x-www-form-urlencoded", "multipart/form-data"]  # fmt: skip
            headers = {"Content-Type": draw.choice(kinds)}
            found.append(("POST", "/v1/videos", {"content": b"a=b", "headers": headers}))
        else:
            name = draw.choice(["limit", "order", "after"])
            found.append(("GET", "/v1/videos", {"params": {name: text + "x"}}))
    return found


_JSON = {"Content-Type": "application/json"}
BAD_JSON = [
    b"", b"[]", b"null", b'"x"', b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe",
    b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
]  # fmt: skip


def test_wrong_requests_are_clearly_refused(tmp_path):
    with serving(tmp_path / "a folder of mine", most_queued=10_000) as client:
        made = 0
        for method, path, arguments in wrong_requests(300):
            answer = client.request(method, path, **arguments)
            what = f"{method} {path} {str(arguments)[:200]}: {answer.text[:300]}"
            assert "mine" not in answer.text and not PATH.search(answer.text), what
            if answer.status_code == 200:  # the draw hit what is right
                made += 1
                continue
            assert 400 <= answer.status_code < 500, what
            assert answer.json()["error"]["message"], what
        assert made < 30
        assert len(client.service.store.all()) == made
        assert not leftovers(client)
        assert client.get("/health").status_code == 200


def test_html_in_a_prompt_comes_back_as_json_alone(guarded):
    answer = guarded.post("/v1/videos", json={**QUICK, "prompt": "<b>x</b>"}, headers=BEARER)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["prompt"] == "<b>x</b>"
    guarded.delete(f"/v1/videos/{answer.json()['id']}", headers=BEARER)


def test_two_hundred_requests_at_once_fill_the_queue_and_no_more(tmp_path, monkeypatch):
    with serving(tmp_path, most_queued=100) as client:
        first = client.post("/v1/videos", json=QUICK).json()["id"]
        (job,) = client.service.store.queued()
        model, known = client.service.model("demo"), Estimate(**job.about["estimate"])

        def estimate(settings, *_):  # a real one takes a third of a second
            return replace(known, seed=settings["seed"])

        monkeypatch.setattr(service, "estimate_video", estimate)
        monkeypatch.setattr(service, "find_model", lambda *_: model)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen: list[int] = []
        limits = httpx.Limits(max_connections=200)
        with (
            httpx.Client(base_url=client.base_url, limits=limits, timeout=120) as many,
            ThreadPoolExecutor(200) as pool,
        ):
            requests = [
                pool.submit(many.post, "/v1/videos", json={**QUICK, "seed": number})
                for number in range(200)
            ]
            while not all(request.done() for request in requests):
                seen.append(client.get(f"/v1/videos/{first}").status_code)
        answers = [request.result() for request in requests]
        taken = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        others = [answer for answer in answers if answer.status_code != 200]
        assert len(taken) == 99 and all(answer.status_code == 429 for answer in others)
        assert all("retry-after" in answer.headers for answer in others)
        assert {job.id for job in client.service.store.queued()} == {first, *taken}
        assert len(list(client.service.home.jobs.iterdir())) == 100
        assert len(seen) > 5 and set(seen) == {200}
        unit = 1 if sys.platform == "darwin" else 1024
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * unit < 300 * MIB
