"""Callers by their credentials, acceptance by the upstream, tokens, and where requests may go."""

from __future__ import annotations

import pytest

from stillhouse.errors import ConfigError
from stillhouse.gateway.access import Access
from stillhouse.gateway.settings import GatewaySettings, load_settings, secret_key
from stillhouse.gateway.upstream import UpstreamAddress, normalise_path, request_headers, response_headers

KEY = b"0" * 32
BEARER = (b"authorization", b"Bearer sk-1")


def test_an_acceptance_lasts_ten_minutes_and_ends_with_a_rejection() -> None:
    now = [0.0]
    access = Access(KEY, clock=lambda: now[0])
    caller = access.read([BEARER], b"")
    assert not access.is_allowed(caller, "m")
    for status in (400, 429, 500, 307):
        access.note(caller, "m", status)
        assert not access.is_allowed(caller, "m")
    access.note(caller, "m", 200)
    now[0] = 600.0
    assert access.is_allowed(caller, "m") and not access.is_allowed(caller, "m2")
    now[0] = 600.1
    assert not access.is_allowed(caller, "m")
    access.note(caller, "m", 200)
    access.note(caller, "m", 401)
    assert not access.is_allowed(caller, "m")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(b"authorization", b"Bearer sk-2")], b""),
        ([BEARER, (b"openai-organization", b"another")], b""),
        ([BEARER, (b"cf-aig-authorization", b"another")], b""),
        ([BEARER, (b"cookie", b"a=b")], b""),
        ([BEARER], b"key=x"),
        ([], b""),
    ],
)
def test_an_acceptance_counts_for_the_same_credentials_only(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    access = Access(KEY)
    access.note(access.read([BEARER], b""), "m", 200)
    assert access.is_allowed(access.read([BEARER], b"api-version=1"), "m")
    assert not access.is_allowed(access.read(headers, query), "m")


def test_who_a_caller_is_does_not_depend_on_what_it_can_choose() -> None:
    access = Access(KEY)
    caller = access.read([BEARER], b"")
    same = access.read([BEARER, (b"cookie", b"x=1"), (b"openai-project", b"p"), (b"user-agent", b"u")], b"limit=3")
    assert caller.id == same.id == caller.tenant
    assert access.read([BEARER, (b"api-key", b"made up")], b"").is_ambiguous
    assert Access(b"1" * 32).read([BEARER], b"").id != caller.id


def test_a_credential_in_a_header_that_is_not_listed_is_one() -> None:
    access = Access(KEY)
    caller = access.read([(b"ocp-apim-subscription-key", b"0123456789")], b"")
    access.note(caller, "m", 200)
    assert access.is_allowed(caller, "m") and not access.is_allowed(access.read([], b""), "m")
    assert caller.id != access.read([], b"").id and caller.is_in(b"... 0123456789 ...")


def test_one_key_is_one_caller_however_it_is_written() -> None:
    access = Access(KEY, joined=True)
    written = [b"Bearer sk-1", b"bearer sk-1", b"BEARER  sk-1 ", b"sk-1"]
    callers = {access.read([(b"authorization", text)], b"").id for text in written}
    assert callers == {access.read([(b"api-key", b"sk-1")], b"").id}


def test_callers_without_the_configured_header_share_nothing() -> None:
    access = Access(KEY, credential="x-user")
    one, two = (access.read([(b"authorization", text)], b"") for text in (b"Bearer one", b"Bearer two"))
    assert one.tenant != two.tenant and one.id != two.id


def test_a_long_name_of_a_model_is_not_kept() -> None:
    access = Access(KEY)
    caller = access.read([BEARER], b"")
    access.note(caller, "m" * 1000, 200)
    assert not access.is_allowed(caller, "m" * 1000)


def test_a_token_of_ours_allows_and_identifies() -> None:
    access = Access(KEY, tokens=["ours"])
    token = (b"x-stillhouse-token", b"ours")
    assert access.is_allowed(access.read([token], b""), "m")
    assert not access.is_allowed(access.read([(b"x-stillhouse-token", b"other")], b""), "m")
    assert access.read([token, BEARER], b"").id == access.read([BEARER], b"").id
    assert access.read([token], b"").id != access.read([], b"").id


def test_credentials_are_found_in_bodies() -> None:
    access = Access(KEY)
    caller = access.read([BEARER, (b"cookie", b"session=abcdefghij; theme=dark")], b"")
    assert caller.is_in(b"... abcdefghij ...") and not caller.is_in(b"session Bearer dark")


@pytest.mark.parametrize(
    ("text", "shown", "prefix"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com", ""),
        ("https://api.openai.com", "https://api.openai.com", ""),
        ("https://openrouter.ai/api/v1/", "https://openrouter.ai/api", "/api"),
        ("http://[::1]:8080", "http://[::1]:8080", ""),
    ],
)
def test_addresses(text: str, shown: str, prefix: str) -> None:
    address = UpstreamAddress.parse(text)
    assert (str(address), address.prefix) == (shown, prefix)


@pytest.mark.parametrize(
    "text",
    [
        "api.openai.com",
        "ftp://x",
        "https://u:p@x",
        "https://x?key=1",
        "https://x/../y",
        "http://x:99999",
        "https://x/a b",
    ],
)
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--upstream") as caught:
        UpstreamAddress.parse(text)
    assert ":p@" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/v1/chat/completions", "/v1/chat/completions"),
        (b"/a/./b/../c", "/a/c"),
        (b"/../../x", "/x"),
        (b"/a/%2e%2E/b", "/b"),
        (b"/a/..", "/"),
        (b"/a/b/.", "/a/b/"),
        (b"/a/.../b", "/a/.../b"),
        (b"/a%2Fb", "/a%2Fb"),
        (b"/a%2F..%2Fb", None),
        (b"//x", None),
        (b"/x/..//y", None),
        (b"x", None),
        (b"/a\\..\\b", None),
        (b"/a b", None),
    ],
)
def test_paths(raw: bytes, path: str | None) -> None:
    assert normalise_path(raw) == path


def test_hop_by_hop_headers_stay_here() -> None:
    address = UpstreamAddress.parse("https://x.test")
    headers = [
        (b"host", b"here"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"te", b"trailers"),
        (b"x-stillhouse-token", b"t"),
        (b"accept", b"*/*"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert request_headers(headers, address, None) == [
        (b"host", b"x.test"),
        (b"accept", b"*/*"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert response_headers([(b"Connection", b"x-a"), (b"X-A", b"1"), (b"Date", b"d"), (b"X-B", b"2")]) == [
        (b"x-b", b"2")
    ]


def test_settings_explain_their_errors() -> None:
    from stillhouse.gateway.settings import gateway_folder

    assert load_settings() == GatewaySettings()
    folder = gateway_folder()
    folder.mkdir(parents=True)
    for text, part in (
        ("retention: soon\n", "1: retention"),
        ("tenant: header\n", "tenant_header"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "gateway.yaml:"),
        ("tenant: header\ntenant_header: 'a b'\n", "no name of a header"),
    ):
        (folder / "gateway.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"gateway\.yaml") as caught:
            load_settings()
        assert part in str(caught.value)


def test_the_secret_key_is_made_once_and_a_damaged_one_is_refused() -> None:
    from stillhouse.gateway.settings import gateway_folder

    assert secret_key() == secret_key()
    (gateway_folder() / "secret.key").write_text("abc")
    with pytest.raises(ConfigError, match=r"secret\.key"):
        secret_key()
