"""Secrets are nowhere in what the masker gives, wherever they stood; what is no secret stays byte for byte."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask.masker import Masker
from mask.settings import MaskSettings
from wire import content, head
from wire.config import ConfigError, load, load_file
from wire.records import Exchange, Fault, Mode, Request, Response

KEY = b"a masking key of 32 bytes, yes.."
SECRET = "k9J2mQ8xL4pR7vT1nB5c"
JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


def exchange(
    request: bytes = b"GET / HTTP/1.1\r\n\r\n",
    body: bytes = b"",
    response: bytes = b"HTTP/1.1 200 OK\r\n\r\n",
    answer: bytes = b"",
    **changes: object,
) -> Exchange:
    e = Exchange(
        b"e" * 16, b"s" * 16, b"c" * 16, "10.0.0.1:1", "10.0.0.2:80",
        Request(request, body, len(body)), Response(200, response, answer, len(answer)), 1, 2, 3, 4,
    )  # fmt: skip
    return msgspec.structs.replace(e, **changes)


def masked(e: Exchange, **options: object) -> Exchange:
    return Masker(KEY, MaskSettings(**options)).exchange(e)  # type: ignore[arg-type]


def post(fields: bytes, body: bytes) -> Exchange:
    return exchange(b"POST /a HTTP/1.1\r\nHost: a\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body), body)


def text_of(e: Exchange) -> str:
    """All bytes of it, bodies decoded."""
    parts = [msgspec.msgpack.encode(e)]
    for message in (e.request, e.response):
        if message is not None and message.body:
            opened = content.decoded(message.body, content.codings_of(message.head))
            parts.append(opened[0] if opened else b"")
    return b"\n".join(parts).decode("latin-1")


BASIC = base64.b64encode(f"ann:{SECRET}".encode()).decode()
PLACES = {
    "bearer": exchange(f"GET / HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode()),
    "basic": exchange(f"GET / HTTP/1.1\r\nAuthorization: Basic {BASIC}\r\n\r\n".encode()),
    "scheme nobody knows": exchange(f"GET / HTTP/1.1\r\nauthorization : Foo a={SECRET}, b=2\r\n\r\n".encode()),
    "unknown header": exchange(f"GET / HTTP/1.1\r\nX-Whatever: {SECRET}\r\n\r\n".encode()),
    "folded header": exchange(f"GET / HTTP/1.1\r\nX-Whatever: a\r\n {SECRET}\r\n\tb\r\n\r\n".encode()),
    "line without a colon": exchange(f"GET / HTTP/1.1\r\n{SECRET}\r\n\r\n".encode()),
    "bare CR in an allowed header": exchange(f"GET / HTTP/1.1\r\nAccept: a\rAuthorization: {SECRET}\r\n\r\n".encode()),
    "no start line": exchange(f"{SECRET}\r\n\r\n".encode()),
    "LF alone": exchange(f"GET / HTTP/1.1\nCookie: a={SECRET}\n\n".encode()),
    "cookie": exchange(f'GET / HTTP/1.1\r\nCookie: theme=dark; a={SECRET}; b="{SECRET}"\r\n\r\n'.encode()),
    "cookie without a name": exchange(f"GET / HTTP/1.1\r\nCookie: {SECRET}\r\n\r\n".encode()),
    "set-cookie": exchange(response=f"HTTP/1.1 200 OK\r\nSet-Cookie: a={SECRET}; Path=/\r\n\r\n".encode()),
    "query by name": exchange(f"GET /a?x=1&access_token={SECRET} HTTP/1.1\r\n\r\n".encode()),
    "query by look": exchange(f"GET /a?x={SECRET}&y=2 HTTP/1.1\r\n\r\n".encode()),
    "query without a name": exchange(f"GET /a?{SECRET} HTTP/1.1\r\n\r\n".encode()),
    "path": exchange(f"GET /reset/{SECRET}/now HTTP/1.1\r\n\r\n".encode()),
    "path parameter": exchange(f"GET /a;jsessionid={SECRET}?b=1 HTTP/1.1\r\n\r\n".encode()),
    "user information": exchange(f"GET http://ann:{SECRET}@shop/ HTTP/1.1\r\n\r\n".encode()),
    "referer": exchange(f"GET / HTTP/1.1\r\nReferer: https://shop/a?code={SECRET}\r\n\r\n".encode()),
    "location": exchange(response=f"HTTP/1.1 302 F\r\nLocation: /cb#access_token={SECRET}&a=1\r\n\r\n".encode()),
    "json by look": post(JSON, json.dumps({"a": [1, {"b": SECRET}]}).encode()),
    "json key": post(JSON, json.dumps({SECRET: 1}).encode()),
    "json under a secret name": post(JSON, json.dumps({"credentials": {"list": ["x", SECRET]}}).encode()),
    "json in a string": post(JSON, json.dumps({"a": json.dumps({"b": SECRET})}).encode()),
    "json with escapes": post(JSON, json.dumps({"a": SECRET}).replace("k9", "\\u006b9").encode()),
    "json without a type": post(b"", json.dumps({"a": SECRET}).encode()),
    "json text around it": post(JSON, json.dumps({"a": f"your code is {SECRET}, Ann."}).encode()),
    "before a colon": post(JSON, json.dumps({"a": f"it is {SECRET}: mine"}).encode()),
    "before an equals sign": post(JSON, json.dumps({"a": f"so {SECRET}=1"}).encode()),
    "deep json": post(JSON, b'{"a":' * 5000 + json.dumps(SECRET).encode() + b"}" * 5000),
    "json lines": post(JSON, (json.dumps({"a": 1}) + "\n" + json.dumps({"a": SECRET}) + "\n").encode()),
    "form": post(FORM, f"a=1&b={SECRET}".encode()),
    "form without a type": post(b"", f"a=1&b={SECRET}".encode()),
    "html": exchange(
        response=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        answer=f'<form><input name="x" value="{SECRET}"><a href="/r/{SECRET}">'.encode(),
    ),
    "multipart": post(
        b"Content-Type: multipart/form-data; boundary=xx\r\n",
        f'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\n{SECRET}\r\n--xx--\r\n'.encode(),
    ),
    "multipart that cannot be read": post(
        b"Content-Type: multipart/form-data; boundary=xx\r\n", f"--xx\r\n{SECRET}".encode()
    ),
    "gzip": post(JSON + b"Content-Encoding: gzip\r\n", gzip.compress(json.dumps({"a": SECRET}).encode())),
    "gzip that is none": post(JSON + b"Content-Encoding: gzip\r\n", json.dumps({"a": SECRET}).encode()),
    "unknown coding": post(JSON + b"Content-Encoding: br\r\n", SECRET.encode()),
    "gzip, folded": post(JSON + b"Content-Encoding:\r\n gzip\r\n", gzip.compress(json.dumps({"a": SECRET}).encode())),
    "gzip of the transfer": exchange(
        response=b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        answer=gzip.compress(f'<input name="x" value="{SECRET}">'.encode()),
    ),
    "svg in gzip": exchange(
        response=b"HTTP/1.1 200 OK\r\nContent-Type: image/svg+xml\r\nContent-Encoding: gzip\r\n\r\n",
        answer=gzip.compress(f"<svg><text>{SECRET}</text></svg>".encode()),
    ),
    "json of a binary kind": post(b"Content-Type: application/vnd.ms-user+json\r\n", json.dumps({"a": SECRET}).encode()),
    "three types": post(b"Content-Type: image/png\r\n" * 2 + JSON, json.dumps({"a": SECRET}).encode()),
    "utf-16": post(JSON, json.dumps({"a": SECRET}).encode("utf-16")),
    "interim": exchange(
        **{"response": f"HTTP/1.1 200 OK\r\nX-A: {SECRET}\r\n\r\n".encode()},
    ),
    "opaque": exchange(body=SECRET.encode(), mode=Mode.OPAQUE),
    "tunnel": exchange(b"CONNECT a:443 HTTP/1.1\r\n\r\n", SECRET.encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_secret_is_nowhere(name: str) -> None:
    before = PLACES[name]
    plain = text_of(before).replace("\\u006b9", "k9") + (SECRET if name in ("basic", "utf-16") else "")
    assert SECRET in plain.replace("\x00", "")  # negative control: the search finds it where it was not masked
    after = masked(before)
    found = text_of(after)
    assert SECRET not in found and SECRET not in found.replace("\x00", "") and BASIC not in found
    assert after.request.body_bytes == before.request.body_bytes
    length = head.field(after.request.head, b"content-length")
    assert length is None or int(length) == len(after.request.body)


#: Where only the name of the field tells that a value is a secret.
NAMED = {
    "xml": (b"text/xml", b'<a:password xsi:type="string">hunter2</a:password>'),
    "xml, its attributes": (b"text/xml", b'<password token="hunter2">other</password>'),
    "xml, character data": (b"text/xml", b"<password>\n <![CDATA[hunter2]]></password>"),
    "xml, plain": (b"text/xml", b"<a><user>ann</user><password>hunter2</password></a>"),
    "parameter with blanks": (
        b"multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data;\tname = "password"\r\n\r\nhunter2\r\n--x--\r\n',
    ),
    "parameter in another character set": (
        b"multipart/form-data; boundary=x",
        b"--x\r\nContent-Disposition: form-data; name*=UTF-8''password\r\n\r\nhunter2\r\n--x--\r\n",
    ),
    "parts in parts": (
        b"multipart/form-data; boundary=x",
        b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n"
        b'--y\r\nContent-Disposition: form-data; name="password"\r\n\r\nhunter2\r\n--y--\r\n\r\n--x--\r\n',
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_only_its_name_tells_is_masked(name: str) -> None:
    media, body = NAMED[name]
    after = masked(post(b"Content-Type: " + media + b"\r\n", body)).request.body
    assert b"hunter2" not in after and (b"ann" in after) == (b"ann" in body)
    kept = body.replace(b"password", b"size").replace(b"token", b"unit").replace(b"hunter2", b"large")
    assert b"large" in masked(post(b"Content-Type: " + media + b"\r\n", kept)).request.body  # the control


def test_parts_in_parts_end_somewhere() -> None:
    body = b"password=hunter2"
    for depth in range(2000):
        body = b"--%d\r\nContent-Type: multipart/mixed; boundary=%d\r\n\r\n" % (depth, depth - 1) + body
        body += b"\r\n--%d--\r\n" % depth
    after = masked(post(b"Content-Type: multipart/mixed; boundary=1999\r\n", body)).request.body
    assert b"hunter2" not in after and len(after) == len(body)


@pytest.mark.parametrize("digits", ["12345678", "123456789", "1234567890"])
def test_a_phone_number_with_a_plus_is_masked_everywhere(digits: str) -> None:
    phone = f"+{digits}"
    e = exchange(
        f"POST /a/{phone}?b=%2B{digits} HTTP/1.1\r\nContent-Type: application/json\r\n\r\n".encode(),
        json.dumps({"a": phone, "b": f"call {phone} now"}).encode(),
    )
    assert digits not in text_of(masked(e))


def test_trailers_and_interim_answers_are_masked() -> None:
    e = exchange(
        request=b"GET / HTTP/1.1\r\n\r\n",
    )
    e = msgspec.structs.replace(
        e,
        request=msgspec.structs.replace(e.request, trailers=f"X-Sum: {SECRET}\r\n".encode()),
        response=Response(
            200, b"HTTP/1.1 200 OK\r\n\r\n", trailers=f"X-Sum: {SECRET}\r\n".encode(),
            interim=(f"HTTP/1.1 103 Early Hints\r\nX-A: {SECRET}\r\n\r\n".encode(),),
        ),
    )  # fmt: skip
    assert SECRET not in text_of(masked(e)) and b"103 Early Hints" in masked(e).response.interim[0]  # type: ignore[union-attr]


def test_one_secret_has_one_token_wherever_it_stands() -> None:
    tokens = set()
    for name in ("bearer", "unknown header", "cookie", "set-cookie", "query by look", "path", "referer", "json by look",
                 "json under a secret name", "form", "html", "multipart", "gzip", "json text around it"):  # fmt: skip
        found = re.findall(r"lfx_[A-Za-z0-9]+", text_of(masked(PLACES[name])))
        assert found, name
        tokens |= set(found) if name != "json under a secret name" else {found[-1]}
    decoded = base64.b64decode(masked(PLACES["basic"]).request.head.split(b"Basic ")[1].split(b"\r")[0]).decode()
    tokens.add(decoded.partition(":")[2])
    assert len(tokens) == 1 and len(tokens.pop()) == len(SECRET)


OK = b"HTTP/1.1 200 OK\r\n"
KEPT = [
    exchange(
        b"POST /shop/orders/17?page=2&sort=price-asc HTTP/1.1\r\nHost: shop.test:8080\r\nUser-Agent: Mozilla/5.0 (X11; "
        b"Linux x86_64)\r\nAccept: */*\r\nIf-None-Match: \"5d8c72a5edda8d6a:3239\"\r\n"
        b"Cookie: theme=dark; lang=en-GB\r\n"
        b"Content-Type: application/json\r\n"
        b"Livefire-Marker: v1;run=a;exp=1;kid=k1;sig=b0c343cd64e47bbc79e3a14e0741f706\r\n\r\n",
        b'{"sku": "sku-00017",  "n": 2, "at": "2026-11-20T23:25:00.000Z", "text": "ring twice, please", "x": -1.50e3}',
        b"HTTP/1.1 201 Created\r\nLocation: /shop/orders/18\r\nContent-Type: application/json\r\n\r\n",
        b'{"status":"waiting-for-payment","ok":true,"none":null,"total":129900,"url":"/shop/orders/18?page=1"}',
    ),
    exchange(b"POST /a HTTP/1.1\r\n" + FORM + b"\r\n", b"name=Ann+Lee&colour=%23ff00aa&flag"),
    exchange(response=b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", answer=b"\x89PNG" + SECRET.encode()),
    exchange(response=OK + b"Content-Type: application/octet-stream\r\n\r\n", answer=b"\xff\x00\x80" * 90),
    exchange(response=OK + b"Content-Type: text/html\r\n\r\n", answer=b"<p class=\"a\">Hello, dear visitor: welcome!"),
    exchange(b"OPTIONS * HTTP/1.1\r\n\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("e", KEPT)
def test_what_is_no_secret_stays_byte_for_byte(e: Exchange) -> None:
    assert masked(e) is e


def test_only_the_secret_in_a_body_changes() -> None:
    body = b'{ "a" : 1.50,\n "password" : "hunter2hunter2", "b":[ true ,null], "a":2 }'
    after = masked(post(JSON, body)).request.body
    before, token, rest = body.partition(b"hunter2hunter2")
    assert after.startswith(before) and after.endswith(rest) and len(after) == len(body) and token not in after


@pytest.mark.parametrize(
    "name", ["password", "newPassword2", "user_pin", "X-Api-Key", "PHPSESSID", "cardNumber", "cvc"]
)
def test_common_names_are_secret(name: str) -> None:
    assert b"abc123" not in masked(post(JSON, json.dumps({name: "abc123"}).encode())).request.body
    assert b"abc123" not in masked(post(FORM, f"{name}=abc123".encode())).request.body
    assert b"abc123" not in masked(exchange(f"GET /?{name}=abc123 HTTP/1.1\r\n\r\n".encode())).request.head


@pytest.mark.parametrize(
    "name", ["username", "monkey", "passenger", "compass", "spinach", "company", "keyboard", "city"]
)
def test_names_that_only_contain_such_words_are_not(name: str) -> None:
    e = post(JSON, json.dumps({name: "abc123"}).encode())
    assert masked(e) is e


@pytest.mark.parametrize(
    "value",
    ["ann@mail.example", "4111 1111 1111 1111", "4111111111111111", "+49 170 1234567", "(555) 123-4567",
     "0f8fad5b-d9cb-469f-a165-70867728950e", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"],
)  # fmt: skip
def test_values_are_secret_by_their_look(value: str) -> None:
    body = json.dumps({"a": value, "b": f"so {value} it is"}).encode()
    assert value.encode() not in masked(post(JSON, body)).request.body


def test_numbers_stay_numbers() -> None:
    after = json.loads(
        masked(post(JSON, b'{"otp": 123456, "card": 4111111111111111, "n": 5, "ssn": "078-05-1120"}')).request.body
    )
    assert isinstance(after["otp"], int) and isinstance(after["card"], int) and after["n"] == 5
    assert after["card"] < 2**53 and len(str(after["card"])) == 16


def test_settings_add_names_and_keep_others() -> None:
    body = b'{"pfx_Zip": "abc123", "session": "abc124", "a": "0f8fad5b-d9cb-469f-a165-70867728950e"}'
    e = post(JSON + b"X-Shop: abc125\r\nCookie: keep=ABC126xyz\r\n", body)
    assert masked(e, fields=("pfx zip",)).request.body.count(b"abc123") == 0
    assert masked(e).request.body.count(b"abc123") == 1
    kept = masked(e, keep_fields=("session",), allow_headers=("x-shop",), allow_cookies=("keep",), patterns=("jwt",))
    assert kept is e


def test_mask_yaml_is_read_and_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.yaml").write_text("fields: [shoe_size]\nallow_headers: [x-a]\npatterns: [jwt, entropy]\n")
    assert load_file(tmp_path / "mask.yaml", MaskSettings).fields == ("shoe_size",)
    with pytest.raises(ConfigError, match=r"mask.yaml:1:1: unknown field 'field'.*'fields'"):
        load("field: [a]", MaskSettings, "mask.yaml")


# ---------------------------------------------------------------------------- cut, lost, hostile


@given(st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_a_body_that_is_cut_anywhere_leaks_nothing(at: int) -> None:
    for kind, whole in (
        (JSON, json.dumps({"user": "ann", "password": "hunter2-hunter", "deep": {"x": SECRET, "n": 4111111111111111}})),
        (FORM, f"user=ann&password=hunter2-hunter&x={SECRET}&y=4111111111111111"),
        (b"Content-Type: text/plain\r\n", f"dear ann, your password: hunter2-hunter, and {SECRET} 4111111111111111"),
    ):
        body = whole.encode()[:at]
        e = post(kind, body)
        e = msgspec.structs.replace(
            e, request=msgspec.structs.replace(e.request, truncated_bytes=len(whole) - len(body))
        )
        after = masked(e).request.body.decode("latin-1")
        for secret in ("hunter2-hunter", SECRET, "4111111111111111"):
            for n in range(6, len(secret) + 1):
                assert secret[:n] not in after, (whole[:at], after)


def test_a_cut_gzip_body_is_masked_as_far_as_it_goes() -> None:
    whole = gzip.compress(
        json.dumps({"password": "hunter2-hunter", "x": [SECRET] * 3, "y": list(range(2000))}).encode()
    )
    e = post(JSON + b"Content-Encoding: gzip\r\n", whole[:-400])
    e = msgspec.structs.replace(e, request=msgspec.structs.replace(e.request, truncated_bytes=400))
    found = text_of(masked(e))
    assert "hunter2" not in found and SECRET not in found and '"y"' in found


def test_a_body_with_a_hole_is_replaced_by_its_length() -> None:
    e = post(JSON, b'{"password": r2-hunter", "x": 1}')
    e = msgspec.structs.replace(e, request=msgspec.structs.replace(e.request, missing_bytes=7), faults=(Fault.GAP,))
    masker = Masker(KEY)
    assert masker.exchange(e).request.body == b"*" * len(e.request.body)
    assert masker.counts["gap"] == 1


@pytest.mark.parametrize("side", ["request", "answer"])
def test_what_never_came_whole_is_masked_as_what_was_cut(side: str) -> None:
    """A form that is not over yet: its last value may be the beginning of a secret, under a name that tells nothing."""
    body = b"colour=red&note=k9J2mQ"
    e = (
        post(FORM, body)
        if side == "request"
        else exchange(response=b"HTTP/1.1 200 OK\r\n" + FORM + b"\r\n", answer=body)
    )
    half = msgspec.structs.replace(e, response=None if side == "request" else e.response, faults=(Fault.UNFINISHED,))
    assert "note=k9J2mQ" in text_of(masked(e)), "whole, it is no secret"
    assert "k9J2mQ" not in text_of(masked(half)) and "colour=red" in text_of(masked(half))


#: Headers that name a client, a session or a right; of fields like these some are thought to be the protocol's.
PERSONAL = (
    "api-key", "apikey", "authentication-info", "client-ip", "cf-connecting-ip", "cookie2", "forwarded", "from",
    "proxy-authenticate-info", "sec-websocket-key", "set-cookie2", "traceparent", "true-client-ip",
    "x-amz-security-token", "x-amzn-oidc-data", "x-amzn-trace-id", "x-api-key", "x-auth-token", "x-client-cert",
    "x-csrf-token", "x-forwarded-for", "x-forwarded-user", "x-real-ip", "x-request-id", "x-user-id",
    "x-vault-token", "x-xsrf-token",
)  # fmt: skip


@pytest.mark.parametrize("name", PERSONAL)
def test_headers_of_persons_and_rights_are_masked(name: str) -> None:
    """Whatever their value looks like."""
    e = exchange(f"GET / HTTP/1.1\r\nHost: a\r\n{name}: plain words\r\n\r\n".encode())
    after = masked(e).request.head
    assert b"plain words" not in after and b"plain" not in after and after.count(b"\r\n") == 4
    assert b"plain words" in masked(e, allow_headers=(name,)).request.head, "unless it is allowed"


def test_what_is_not_json_has_no_string_left() -> None:
    after = masked(post(JSON, b'{\'password\': \'hunter2\', "a": "word", "b" "c": unquoted}')).request.body
    assert b"hunter2" not in after and b"word" not in after and b"unquoted" not in after


@given(
    st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([b"", JSON, FORM, b"Content-Type: text/html\r\n"])
)
@settings(max_examples=200, deadline=None)
def test_nothing_on_the_wire_raises_and_masking_is_a_function(raw: bytes, body: bytes, kind: bytes) -> None:
    for start in (b"", b"GET /a HTTP/1.1\r\n" + kind):
        e = exchange(start + raw, body, b"HTTP/1.1 200 OK\r\n" + kind + raw, body)
        masker = Masker(KEY)
        assert masker.exchange(e) == masker.exchange(e) == Masker(KEY).exchange(e)
        masker.exchange(msgspec.structs.replace(e, mode=Mode.OPAQUE, response=None))


_WORD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=8, max_size=30)


@given(_WORD.filter(lambda v: v.strip() == v and not v.isdigit()), st.sampled_from(["json", "form", "query", "cookie"]))
@settings(max_examples=150, deadline=None)
def test_any_value_under_a_secret_name_is_gone(value: str, where: str) -> None:
    from urllib.parse import quote, quote_plus

    e = {
        "json": lambda: post(JSON, json.dumps({"a": {"password": value}}).encode()),
        "form": lambda: post(FORM, f"password={quote_plus(value)}".encode()),
        "query": lambda: exchange(f"GET /?password={quote(value, safe='')} HTTP/1.1\r\n\r\n".encode()),
        "cookie": lambda: exchange(f"GET / HTTP/1.1\r\nCookie: password={quote(value, safe='')}\r\n\r\n".encode()),
    }[where]()
    found = text_of(masked(e))
    for spelled in (value, json.dumps(value)[1:-1], quote(value, safe=""), quote_plus(value)):
        assert spelled not in found


@pytest.mark.parametrize(
    "body", [b"name=x ", b"a.", b"+1 ", b"1 ", b"a: ", b"bearer ", b"/a", b"a@", b"eyJ.", b'"\\', b"{", b"a=b&"]
)
@pytest.mark.parametrize("kind", [b"Content-Type: text/html\r\n", JSON, FORM])
def test_time_grows_with_the_length_alone(kind: bytes, body: bytes) -> None:
    def cpu_s(n: int) -> float:
        e = post(kind, body * (n // len(body)))
        began = time.process_time()
        Masker(KEY).exchange(e)
        return time.process_time() - began

    assert cpu_s(40_000) < 5  # with the square of the length it would be minutes


def test_a_head_of_many_spaces_is_read_in_no_time() -> None:
    began = time.process_time()
    masked(exchange(b"GET /" + b" " * 200_000 + b"x\r\n\r\n"))
    assert time.process_time() - began < 5  # what is tried from each blank again takes minutes


@pytest.mark.patches
def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import mask.bodies
    import mask.heads
    import mask.jsonbodies
    import mask.names
    import mask.tokens
    import mask.values

    for module in (mask.bodies, mask.heads, mask.jsonbodies, mask.names, mask.tokens, mask.values):
        monkeypatch.setattr(module, "MAX_CACHED", 10)
    masker = Masker(KEY)
    for n in range(200):
        masker.exchange(
            post(
                JSON + f"X-A-{n}: v{n}\r\n".encode(),
                json.dumps({f"k{n}": f"value: {n}-1234", "token": str(n)}).encode(),
            )
        )
    values, bodies = masker.values, masker._bodies
    caches = [values.tokens._known, values._known, values.names._known, masker._heads._lines,
              masker._heads._starts, bodies._known, bodies._json._plain, bodies._json._keys]  # fmt: skip
    assert all(0 < len(cache) <= 10 for cache in caches), [len(cache) for cache in caches]


def test_counts_say_what_was_masked() -> None:
    masker = Masker(KEY)
    for e in PLACES.values():
        masker.exchange(e)
    assert {
        "target",
        "header",
        "cookie",
        "malformed_line",
        "json",
        "form",
        "multipart",
        "text",
        "undecodable",
        "opaque",
    } <= set(masker.counts)
    quiet = Masker(KEY)
    for e in KEPT:
        quiet.exchange(e)
    assert quiet.counts == {}


@pytest.mark.parametrize(
    "target",
    [b"/a?q=%ff%fe%20a@b.com%ff", b"/a?q=\xff\xfe a@b.com", b"/?password=%ff%fe\xff"],
)
def test_bytes_that_are_no_utf8_are_masked_like_others(target: bytes) -> None:
    e = post(b"Content-Type: text/plain\r\n", b"\xff password=\xfe\xff a@b.com")
    e = msgspec.structs.replace(
        e, request=msgspec.structs.replace(e.request, head=e.request.head.replace(b"/a", target, 1))
    )
    written = masked(e).request
    assert b"a@b.com" not in written.head + written.body
    assert b"password=\xfe" not in written.body and b"=%ff%fe\xff" not in written.head


def test_what_follows_a_switch_of_protocols_is_not_written() -> None:
    """Bytes of another protocol, which no rule here reads: whatever their type was said to be."""
    e = exchange(
        b"GET /ws HTTP/1.1\r\n\r\n", response=b"HTTP/1.1 101 X\r\nContent-Type: image/png\r\n\r\n", answer=b"pin 1234"
    )
    assert e.response is not None
    e = msgspec.structs.replace(e, response=msgspec.structs.replace(e.response, status=101))
    masked = Masker(KEY).exchange(e)
    assert masked.response is not None and masked.response.body == b"*" * 8
    ordinary = msgspec.structs.replace(e, response=msgspec.structs.replace(e.response, status=200))
    assert Masker(KEY).exchange(ordinary).response == ordinary.response


def test_corners_in_which_nobody_looks() -> None:
    """Around the parts of a multipart body, behind two types, in a reason phrase, in a cookie's made-up attribute."""
    form = b"Content-Type: multipart/form-data; boundary=B\r\n"
    part = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    for e in (
        exchange(b"POST / HTTP/1.1\r\n" + form + b"\r\n", f"password={SECRET}\r\n".encode() + part + b"--B--\r\n"),
        exchange(b"POST / HTTP/1.1\r\n" + form + b"\r\n", part + b"--B--\r\n" + SECRET.encode()),
        exchange(b"POST / HTTP/1.1\r\n" + form + b"\r\n", part + b"--B--" + SECRET.encode()),
        exchange(
            b"POST / HTTP/1.1\r\nContent-Type: image/png\r\n" + JSON + b"\r\n", json.dumps({"pin": SECRET}).encode()
        ),
        exchange(response=f"HTTP/1.1 200 {SECRET}\r\n\r\n".encode()),
        exchange(response=f"HTTP/1.1 200 {'very ' * 20}{SECRET}\r\n\r\n".encode()),
        exchange(response=f"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/; token={SECRET}; Secure\r\n\r\n".encode()),
    ):
        masked = Masker(KEY).exchange(e)
        assert masked.response is not None
        for blob in (masked.request.head, masked.request.body, masked.response.head, masked.response.body):
            assert SECRET.encode() not in blob, blob
        assert len(masked.request.body) == len(e.request.body)
    # what harms nobody stays
    for kept in (
        exchange(b"POST / HTTP/1.1\r\n" + form + b"\r\n", part + b"--B--\r\n"),
        exchange(b"POST / HTTP/1.1\r\n" + form + b"\r\n", part + b"--B--"),
        exchange(response=b"HTTP/1.1 203 Non-Authoritative Information\r\nSet-Cookie: a=b; Path=/x; Max-Age=9\r\n\r\n"),
        exchange(response=b"HTTP/1.1 418 I'm a teapot\r\n\r\n"),
        exchange(response=b"HTTP/1.1 200\r\n\r\n"),
        exchange(response=b"HTTP/1.1 200 \r\n\r\n"),
    ):
        assert Masker(KEY).exchange(kept) == kept


def test_basic_credentials_that_are_no_ascii_are_masked_whole() -> None:
    e = masked(post(b"Authorization: Basic caf\xc3\xa9\xff==\r\n", b""))
    assert b"caf" not in e.request.head


def test_a_name_that_is_harmless_saves_no_line_that_is_no_field() -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nDate\r\nserver\r\nAge: a\x01b\r\n\r\n"
    new = Masker(KEY)._heads.head(head).split(b"\r\n")
    assert new[1] == b"Host: x"
    assert b"Date" not in new
    assert b"server" not in new
    assert b"a\x01b" not in b"".join(new)


@given(st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_what_is_remembered_changes_no_byte(seed: int) -> None:
    """A masker that has seen much, and is told where the fields begin, writes what a new one writes."""
    rng = random.Random(seed)
    seen = Masker(KEY)
    lines = [b"Host: x", b"X-A: secret-1", b"Cookie: sid=abc123; theme=dark", b"no field", b" folded", b"", b"Date: now",
             b"Referer: http://x/?token=t1", b"X-B:", b"Authorization: Bearer abcdef", b"Age: \x01", b"Date"]  # fmt: skip
    starts = [
        b"GET /a?password=1 HTTP/1.1",
        b"GET /orders HTTP/1.1",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 very4odd",
        b"?",
    ]
    counts: dict[str, int] = {}
    for _ in range(30):
        end = rng.choice([b"\r\n", b"\r\n", b"\n"])
        block = end + b"".join(rng.choice(lines) + end for _ in range(rng.randrange(5))) + end
        block = block[block.index(b"\n") :]
        head = rng.choice(starts) + rng.choice([b"\r", b""]) + block
        new = Masker(KEY)
        expected = new._heads.head(head)
        assert seen._heads.masked(head, rng.choice([block, b""]))[0] == expected
        for what, count in new.counts.items():
            counts[what] = counts.get(what, 0) + count
    assert seen.counts == counts


@pytest.mark.parametrize("text", ["2026-11-20", "2026-11-20T12:30:00Z", "1999-01-02 03:04:05.123456+01:00"])
def test_a_time_is_no_secret(text: str) -> None:
    """What is told before all patterns, no pattern finds."""
    values = Masker(KEY).values
    assert values.plain(text) == text == values._plain(text)
    assert text not in values._known
    assert values.plain(text + " anna@mail.example") != text + " anna@mail.example"


def test_half_of_a_surrogate_pair_hides_nothing() -> None:
    """It is no text, but what stands beside it is looked at as it is meant, also where the end is missing."""
    body = rb'{"\ud83dp\u0061ssword": "hunter2", "b": "\ud83d \u0061nn@mail.example", "c": '
    for e in (post(JSON, body + b"1}"), exchange(b"POST /a HTTP/1.1\r\n" + JSON + b"\r\n", body)):
        for cut in (0, 9):
            request = msgspec.structs.replace(e.request, truncated_bytes=cut)
            after = masked(msgspec.structs.replace(e, request=request)).request.body
            assert b"hunter2" not in after and b"mail.example" not in after


def test_what_is_masked_is_counted_each_time_also_of_blocks_that_are_not_remembered() -> None:
    """Counts are brought up to date when they are asked for; blocks come, are used again, and are forgotten."""
    masker, want = Masker(KEY), 0
    for round in range(3):
        for number in range(700):  # more than are remembered
            long = b"X-Long: %s\r\n" % (b"v" * 5000) if number % 10 == 0 else b""
            block = b"\nHost: h\r\nX-Own: value %d\r\nX-Same: value\r\n%s\r\n" % (number, long)
            for _ in range(1 + number % 3):
                masker.message(b"GET / HTTP/1.1\r" + block, block, b"")
                want += 3 if long else 2
            if number % 97 == round:
                assert masker.counts == {"header": want}
    assert masker.counts == {"header": want}
    assert masker.counts == {"header": want}, "asked again, nothing is counted twice"
