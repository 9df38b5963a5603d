"""What the upstream says arrives as it is, at once, whatever it says; and what the client sends, too."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.gateway.upstream import Upstream as Sender
from stillhouse.gateway.upstream import UpstreamAddress
from stillhouse.serving import protocol as serving_protocol
from tests.gateway.conftest import Running, open_door
from tests.gateway.upstream import Upstream, chunked, completion, raw, stream_of, upstream, whole

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def post(running: Running, body: Any = BODY, path: str = CHAT, **options: Any) -> httpx.Response:
    return httpx.post(running.url + path, json=body, timeout=10, **options)


def test_bodies_and_headers_go_both_ways_byte_for_byte(running: Running) -> None:
    answer = b'{ "odd" :  [1,2 ],"\\u00e9": "\xc3\xa9" }\n'
    headers = (
        ("Content-Type", "application/json"),
        ("X-RateLimit-Left", "7"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    )
    running.upstream.answer = whole(answer, headers=headers)
    sent = b'{"model" : "m",\n "messages":[ ] , "z": 1e3}'
    response = httpx.post(
        f"{running.url}{CHAT}?api-version=2&b=%2F+x",
        content=sent,
        headers={"content-type": "application/json", "authorization": "Bearer sk", "x-stillhouse-token": "ours"},
    )
    assert response.content == answer
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"] and response.headers["x-ratelimit-left"] == "7"
    assert len(response.headers.get_list("date")) == 1
    (request,) = running.upstream.requests
    assert request.body == sent and request.target == f"{CHAT}?api-version=2&b=%2F+x"
    assert request.header("host") == f"127.0.0.1:{running.upstream.port}"
    assert request.header("authorization") == "Bearer sk" and request.header("x-stillhouse-token") is None
    assert request.header("user-agent") == response.request.headers["user-agent"]
    assert {name.lower() for name, _ in request.headers} == {
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
        "content-type",
        "authorization",
        "content-length",
    }


def test_a_compressed_answer_stays_compressed(running: Running) -> None:
    content = gzip.compress(json.dumps(completion()).encode())
    running.upstream.answer = whole(
        content, headers=(("content-encoding", "gzip"), ("content-type", "application/json"))
    )
    with httpx.stream("POST", running.url + CHAT, json=BODY) as response:
        assert b"".join(response.iter_raw()) == content
    assert response.headers["content-encoding"] == "gzip" and response.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Oh", "529 Busy"]
)
def test_an_error_of_the_upstream_is_seen_as_it_is(running: Running, status: str) -> None:
    answer = b'{"error": {"message": "no", "type": "x"}}'
    running.upstream.answer = whole(answer, status, (("retry-after", "3"), ("content-type", "application/json")))
    response = post(running)
    assert response.status_code == int(status[:3]) and response.content == answer
    assert response.headers["retry-after"] == "3"
    assert len(running.upstream.requests) == 1, "nothing is sent twice"


def test_a_malformed_body_is_seen_as_it_is(running: Running) -> None:
    running.upstream.answer = whole(b'{"choices": [')
    assert post(running).content == b'{"choices": ['
    running.wait_until_written().close()


def test_redirects_are_not_followed(running: Running) -> None:
    running.upstream.answer = whole(b"", "307 Temporary Redirect", (("location", "http://127.0.0.1:1/elsewhere"),))
    response = post(running, follow_redirects=False)
    assert response.status_code == 307 and response.headers["location"] == "http://127.0.0.1:1/elsewhere"
    assert len(running.upstream.requests) == 1


def test_a_stream_is_passed_on_at_once(running: Running) -> None:
    running.upstream.answer = chunked(b"data: 1\n\n", 1.0, b"data: 2\n\n")
    began = time.monotonic()
    with httpx.stream("POST", running.url + CHAT, json=BODY | {"stream": True}) as response:
        arrived = [(chunk, time.monotonic() - began) for chunk in response.iter_raw()]
    assert [chunk for chunk, _ in arrived] == [b"data: 1\n\n", b"data: 2\n\n"]
    assert arrived[0][1] < 0.7 <= arrived[1][1]
    assert response.headers["content-type"] == "text/event-stream"


def test_a_stream_that_is_cut_is_cut_for_the_client_too(running: Running) -> None:
    parts = stream_of("mo", "ve")
    running.upstream.answer = chunked(*parts[:2], is_cut=True)
    received = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("POST", running.url + CHAT, json=BODY | {"stream": True}) as response,
    ):
        for chunk in response.iter_raw():
            received += chunk
    assert received == b"".join(parts[:2])
    counts = running.counts()
    assert counts["requests", "cut"] == 1 and counts["captures", "incomplete"] == 1


def test_a_body_that_is_shorter_than_announced_is_cut_too(running: Running) -> None:
    running.upstream.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}")
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("POST", CHAT, json.dumps(BODY), {"content-type": "application/json"})
    response = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    assert caught.value.partial == b"{}"


def test_a_slow_upstream_is_waited_for(running: Running) -> None:
    async def slow(request: Any, writer: Any) -> None:
        import asyncio

        await asyncio.sleep(1.5)
        await whole(completion())(request, writer)

    running.upstream.answer = slow
    assert post(running).json() == completion()


def test_an_upstream_that_is_down_is_an_error_that_explains(behind: Upstream) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with open_door(behind, url=f"http://127.0.0.1:{port}") as running:
            response = post(running)
            assert response.status_code == 502
            error = response.json()["error"]
            assert error["code"] == "upstream_unreachable" and f"127.0.0.1:{port} cannot be reached" in error["message"]
            body = {"model": "m", "state": "x", "questions": {"q": {"type": "noul"}}}
            assert post(running, body, "/v1/systemone").json()["detail"]["error_type"] == "upstream_unreachable"


@pytest.mark.parametrize("content", [b"", b"SSH-2.0-x\r\n"])
def test_an_upstream_that_does_not_speak_http_is_an_error_that_explains(running: Running, content: bytes) -> None:
    running.upstream.answer = raw(content)
    response = post(running)
    assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_unreachable"


@pytest.mark.parametrize("begins", [False, True])
def test_a_client_that_leaves_closes_the_upstream(running: Running, begins: bool) -> None:
    running.upstream.answer = chunked(b"data: 1\n\n", 30.0) if begins else chunked(30.0)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        body = json.dumps(BODY).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        deadline = time.monotonic() + 5
        while not running.upstream.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert running.upstream.open_connections == 1
    deadline = time.monotonic() + 5
    while running.upstream.open_connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.upstream.open_connections == 0
    assert running.counts()["requests", "client_left"] == 1


def test_other_routes_are_passed_on_unrecorded(running: Running) -> None:
    running.upstream.answer = whole(b'{"data": []}')
    assert httpx.get(f"{running.url}/v1/models?limit=2").json() == {"data": []}
    upload = b"x" * 3_000_000
    response = httpx.post(f"{running.url}/v1/files/../files", content=iter([upload[:10], upload[10:]]))
    assert response.status_code == 200
    assert httpx.delete(f"{running.url}/v1/files/f-1").status_code == 200
    assert [request.target for request in running.upstream.requests] == [
        "/v1/models?limit=2",
        "/v1/files",
        "/v1/files/f-1",
    ]
    assert running.upstream.requests[1].body == upload
    assert httpx.head(f"{running.url}/v1/models").content == b""
    assert running.rows() == []


def test_a_body_above_the_limit_is_passed_on_unrecorded(behind: Upstream) -> None:
    with open_door(behind, max_record_bytes=2048) as running:
        large = BODY | {"messages": [{"role": "user", "content": "x" * 300_000}]}
        for _ in range(2):
            assert post(running, large).json() == completion()
        assert running.upstream.requests[0].json == large
        assert running.counts()["unrecognised", "too large"] == 2


def test_own_routes_stay(running: Running) -> None:
    assert httpx.get(f"{running.url}/healthz").json()["alive"] is True
    assert httpx.get(f"{running.url}/v1/agents").json() == {"agents": []}
    assert httpx.get(f"{running.url}/v1/door").json()["upstream"] == running.upstream.url
    assert "stillhouse_door_requests_total" in httpx.get(f"{running.url}/metrics").text
    assert httpx.post(f"{running.url}/invocations", json={}).status_code == 404
    paths = httpx.get(f"{running.url}/openapi.json").json()["paths"]
    assert {"/v1/door", "/v1/chat/completions", "/v1/responses", "/v1/systemone"} <= set(paths)
    assert running.upstream.requests == []


def test_another_host_is_refused_but_no_token_is_needed(behind: Upstream) -> None:
    with open_door(behind, tokens=("secret",)) as running:
        assert post(running).status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/v1", "/v1/..%2f..%2fadmin", "/v1\\..\\x"])
def test_a_path_that_could_be_another_server_is_refused(running: Running, path: str) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        assert b" 400 " in client.recv(1000).split(b"\r\n")[0]
    assert running.upstream.requests == []


def test_an_absolute_target_still_goes_to_the_upstream(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b" 400 " in client.recv(1000).split(b"\r\n")[0]
    assert running.upstream.requests == []


def self_signed(folder: Path) -> Path:
    """A certificate of localhost with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    text = certificate.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(text)
    return folder / "cert.pem"


def test_the_certificate_of_the_upstream_is_verified(tmp_path: Path) -> None:
    file = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with upstream(tls=tls) as behind:
        url = f"https://localhost:{behind.port}"
        with open_door(behind, url=url) as running:
            response = post(running)
            assert response.status_code == 502 and "certificate" in response.json()["error"]["message"]
        assert behind.requests == []
        trusting = ssl.create_default_context(cafile=str(file))
        with open_door(behind, url=url, sender=Sender(UpstreamAddress.parse(url), ssl_context=trusting)) as running:
            for _ in range(2):
                assert post(running).json() == completion()
            assert behind.connections <= 3, "connections are kept"


def test_a_body_that_arrives_for_a_long_time_is_passed_on(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large upload takes longer than a decision's body may; only a client that stops sending is given up."""
    monkeypatch.setattr(serving_protocol, "BODY_TIMEOUT_SECONDS", 1.6)

    def parts() -> Iterator[bytes]:
        for number in range(10):
            yield b"[0" if number == 0 else b",0"
            time.sleep(0.4)
        yield b"]"

    assert httpx.post(f"{running.url}/v1/embeddings", content=parts(), timeout=20).status_code == 200
    assert running.upstream.requests[0].body == b"[0,0,0,0,0,0,0,0,0,0]"
