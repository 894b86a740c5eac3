import gzip
import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mock.answers import Answer
from mock.match import Matcher, body_features, describe


def recorded(request: str, body: object = None, name: str = "", *, kind: str = "application/json") -> Answer:
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{request} HTTP/1.1\r\nHost: pay:1\r\nContent-Type: {kind}\r\n\r\n".encode()
    return Answer(head, raw, 200, "OK", (), name.encode(), None, 0)


def find(matcher: Matcher, request: str, body: object = None) -> str | None:
    method, _, target = request.partition(" ")
    raw = b"" if body is None else json.dumps(body).encode()
    answer = matcher.find(method, target, raw, "application/json")
    return answer.body.decode() if answer else None


def test_method_path_and_query_names_must_agree() -> None:
    matcher = Matcher([recorded("GET /rates?from=EUR&to=USD", None, "rates"), recorded("POST /pay", {}, "pay")])
    assert find(matcher, "GET /rates?to=USD&from=EUR") == "rates"
    assert find(matcher, "GET /rates?to=JPY&from=EUR") == "rates"
    assert find(matcher, "GET /rates") is None
    assert find(matcher, "POST /rates?from=EUR&to=USD") is None
    assert find(matcher, "GET /pay") is None
    assert find(matcher, "GET http://pay:1/rates?from=EUR&to=USD") == "rates"


def test_equal_query_values_win() -> None:
    matcher = Matcher([recorded(f"GET /rates?to={to}", None, to) for to in ("USD", "JPY", "CHF")])
    assert [find(matcher, f"GET /rates?to={to}") for to in ("JPY", "CHF", "USD")] == ["JPY", "CHF", "USD"]


def test_an_id_in_the_path_may_differ_but_an_equal_one_wins() -> None:
    matcher = Matcher([recorded(f"GET /payments/pay_{n:04d}/state", None, str(n)) for n in range(5)])
    assert find(matcher, "GET /payments/pay_0003/state") == "3"
    assert find(matcher, "GET /payments/pay_9999/state") in "01234"
    assert find(matcher, "GET /payments/pay_0003/other") is None
    assert find(matcher, "GET /payments/latest/state") is None


def test_the_most_equal_body_fields_win_and_changing_values_weigh_nothing() -> None:
    matcher = Matcher(
        [
            recorded("POST /pay", {"order": "o-1", "amount": 100, "card": {"kind": "visa"}}, "visa 100"),
            recorded("POST /pay", {"order": "o-2", "amount": 100, "card": {"kind": "amex"}}, "amex 100"),
            recorded("POST /pay", {"order": "o-3", "amount": 900, "card": {"kind": "amex"}}, "amex 900"),
            recorded("POST /pay", {"refund": "o-3"}, "refund"),
        ]
    )
    for order in ("new-1", "new-2"):
        assert find(matcher, "POST /pay", {"order": order, "amount": 100, "card": {"kind": "amex"}}) == "amex 100"
        assert find(matcher, "POST /pay", {"order": order, "amount": 900, "card": {"kind": "amex"}}) == "amex 900"
        assert find(matcher, "POST /pay", {"refund": order}) == "refund"
    # Nothing but names in common.
    assert find(matcher, "POST /pay", {"order": "x", "amount": 1, "card": {"kind": "jcb"}}) != "refund"


def test_equal_candidates_are_served_in_turn() -> None:
    matcher = Matcher([recorded("POST /pay", {"order": f"o-{n}", "currency": "EUR"}, str(n)) for n in range(4)])
    served = Counter(find(matcher, "POST /pay", {"order": f"new-{n}", "currency": "EUR"}) for n in range(40))
    assert served == {"0": 10, "1": 10, "2": 10, "3": 10}


def test_forms_gzip_and_other_bodies() -> None:
    form = "application/x-www-form-urlencoded"
    assert body_features(b"a=1&b=", form) == [("body", "a", "1"), ("body", "b", "")]
    packed = gzip.compress(b'{"a": [1, 2]}')
    assert set(body_features(packed, "", "gzip")) == {("body", "$.a[*]", "1"), ("body", "$.a[*]", "2")}
    assert body_features(b"\x00\x01", "") == body_features(b"\x00\x01", "x") != body_features(b"\x00\x02", "")
    assert body_features(b"[" * 100_000, "") == body_features(b"[" * 100_000, "")


def test_answers_beyond_the_bound_are_counted() -> None:
    matcher = Matcher([recorded("GET /a", None, str(n)) for n in range(5)], max_answers=3)
    assert (matcher.count, matcher.surplus) == (3, 2)


@given(st.text(max_size=60), st.binary(max_size=200), st.text(max_size=40))
def test_any_request_is_described_and_matched_without_an_exception(target: str, body: bytes, kind: str) -> None:
    matcher = Matcher([recorded("GET /a", {"x": 1}, "a")])
    describe("GET", target)
    matcher.find("GET", target, body, kind)
    assert matcher.find("GET", "/a", body, kind) is not None


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_index_agrees_with_plain_scoring(bodies: list[dict[str, int]]) -> None:
    matcher = Matcher([recorded("POST /p", body, str(n)) for n, body in enumerate(bodies)])
    asked = {"a": 0, "b": 1, "c": 2}

    def score(body: dict[str, int]) -> int:
        everywhere = {key for key in asked if all(other.get(key) == asked[key] for other in bodies)}
        equal = sum(asked.get(key) == value for key, value in body.items() if key not in everywhere)
        return 4 * equal + 2 * len(body.keys() & asked.keys()) - len(body.keys() ^ asked.keys())

    found = find(matcher, "POST /p", asked)
    assert found is not None
    assert score(bodies[int(found)]) == max(map(score, bodies))
