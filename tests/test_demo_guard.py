"""What the demo lets through: hosts, origins, paths, sizes. The guard alone, before a made-up application."""

import asyncio
import json

import pytest

from cxu.demo.guard import MB, Guard, Rules

LIMIT = 2 * MB


@pytest.fixture
def uploads(tmp_path):
    return tmp_path


@pytest.fixture
def rules(uploads):
    return Rules.of("127.0.0.1", LIMIT, uploads)


async def reading_app(scope, receive, send):
    """Read the whole body and answer with its size; like a framework, make a failure of what goes wrong."""
    read, more = 0, True
    try:
        while more:
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"failed"})
        raise
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(read).encode()})


def ask(rules, path="/", *, host="127.0.0.1:7860", method="GET", headers=(), chunks=(b"",)):
    """Return status, headers and text of the answer, and how many chunks were read."""
    sent, taken = [], []
    parts = list(chunks)

    async def receive():
        taken.append(1)
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    all_headers = [(b"host", host.encode())] if host is not None else []
    all_headers += [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": all_headers}
    asyncio.run(Guard(reading_app, rules)(scope, receive, send))
    (start, *bodies) = sent
    return start["status"], dict(start["headers"]), b"".join(one["body"] for one in bodies).decode(), len(taken)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:9000", "LOCALHOST", "[::1]:7860"])
def test_own_names_are_let_through(rules, host):
    assert ask(rules, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "192.168.1.7", "", "["]
)
def test_other_hosts_are_refused(rules, host):
    status, _, said, taken = ask(rules, host=host)
    assert (status, taken) == (421, 0)
    assert "none of this server's" in said


def test_no_host_is_refused(rules):
    assert ask(rules, host=None)[0] == 421


def test_a_server_on_all_addresses_is_reached_by_number_and_own_name_but_not_by_other_names(uploads, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Reading-Room")
    rules = Rules.of("0.0.0.0", LIMIT, uploads)
    for host in ("192.168.1.7:80", "[fe80::1]:80", "reading-room:80", "localhost"):
        assert ask(rules, host=host)[0] == 200
    assert ask(rules, host="evil.example")[0] == 421


def test_a_named_host_is_own(uploads):
    assert ask(Rules.of("films.lab", LIMIT, uploads), host="films.lab:80")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:7860", "http://127.0.0.1:3000"])
def test_requests_from_other_pages_are_refused(rules, origin):
    status, _, said, _ = ask(rules, "/gradio_api/upload", method="POST", headers=[("origin", origin)])
    assert status == 403
    assert "other sites" in said


def test_requests_from_the_own_page_are_let_through(rules):
    assert ask(rules, headers=[("origin", "http://127.0.0.1:7860")])[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://evil.example/x",
        "//gradio_api//file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://evil.example",
        "/gradio_api/deep_link",
        "/gradio_api/component_server",
        "/gradio_api/call/open_film",
        "/gradio_api/run/open_film",
        "/gradio_api/vibe-edit",
        "/gradio_api/runs",
        "/monitoring",
        "/monitoring/summary",
    ],
)
def test_what_the_page_does_not_need_is_closed(rules, path):
    assert ask(rules, path)[0] == 404


def test_a_body_that_announces_too_much_is_refused_unread(rules):
    length = [("content-length", str(LIMIT + MB))]
    status, headers, said, taken = ask(rules, "/gradio_api/upload", method="POST", headers=length, chunks=[b"x"])
    assert (status, taken) == (413, 0)
    assert said == "the file is larger than 2 MB, the limit of this demo (--max-mb)\n"
    assert headers[b"connection"] == b"close"


def test_a_body_that_announces_nothing_is_cut_off_at_the_limit(rules):
    chunks = [b"x" * (MB // 2)] * 20
    status, _, said, taken = ask(rules, "/gradio_api/upload", method="POST", chunks=chunks)
    assert (status, taken) == (413, 5)
    assert "larger than 2 MB" in said


def test_other_requests_have_a_smaller_limit(rules):
    assert ask(rules, "/gradio_api/queue/join", method="POST", chunks=[b"x" * MB])[0] == 200
    assert ask(rules, "/gradio_api/queue/join", method="POST", chunks=[b"x" * MB, b"x"])[0] == 413


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "http://evil.example/x.png", "file:///etc/passwd", "{uploads}/../x", "{uploads}", "", 5, ["x"]],
)
def test_files_that_were_not_uploaded_are_refused(rules, uploads, path):
    named = path.format(uploads=uploads) if isinstance(path, str) else path
    body = json.dumps({"data": [{"deep": [{"path": named, "meta": {"_type": "gradio.FileData"}}]}]}).encode()
    status, _, said, _ = ask(rules, "/gradio_api/queue/join", method="POST", chunks=[body[:9], body[9:]])
    assert status == 403
    assert "no file that was uploaded here" in said


def test_uploaded_files_are_let_through_and_the_body_with_them(rules, uploads):
    body = json.dumps({"data": [{"path": f"{uploads}/hash/a.png"}, None, {"path": None}]}).encode()
    answer = ask(rules, "/gradio_api/queue/join", method="POST", chunks=[body[:9], body[9:]])
    assert answer[::2] == (200, str(len(body)))


@pytest.mark.parametrize("body", [b"path", b"[" * 100_000 + b"path", b"\xff path"])
def test_bodies_that_are_no_json_are_passed_on(rules, body):
    assert ask(rules, "/gradio_api/queue/join", method="POST", chunks=[body])[0] == 200


@pytest.mark.parametrize("length", ["-1", "many", "1e3"])
def test_lengths_that_are_none_are_refused(rules, length):
    assert ask(rules, headers=[("content-length", length)])[0] == 413


def test_a_film_of_the_limit_is_let_through(rules):
    assert ask(rules, "/gradio_api/upload", method="POST", chunks=[b"x" * LIMIT])[::2] == (200, str(LIMIT))


def test_a_full_folder_takes_no_more(rules, uploads):
    (uploads / "film.bin").write_bytes(b"x" * (10 * LIMIT + 10 * MB))
    status, _, said, _ = ask(rules, "/gradio_api/upload", method="POST", headers=[("content-length", "100")])
    assert status == 503
    assert "try again" in said


def test_answers_keep_the_browser_on_this_server(rules):
    _, headers, _, _ = ask(rules)
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-type"] == b"text/plain"
    assert b"cache-control" not in ask(rules, "/assets/index.js")[1]


def test_websockets_are_closed(rules):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(reading_app, rules)({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
