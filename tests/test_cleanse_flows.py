"""Flows are learned from values, whatever the names; coincidences are not."""

from __future__ import annotations

import json
import random

import msgspec
import pytest
import synthetic_trace
from synthetic_trace import MS, START_NS, Trace

from cleanse.flows import FlowLearner, is_candidate
from cleanse.pipeline import Pipeline
from cleanse.settings import CleanseSettings
from mask.masker import Masker
from mask.settings import MaskSettings
from wire import content, head
from wire.records import Exchange, Flow, Flows, PlaceKind, Request, Response

KEY = b"a masking key of 32 bytes, yes.."
# The first one: two sessions each buy a thing of their own twice, and the answer echoes what they asked for.
SEEDS = [425539782] + [random.SystemRandom().randrange(1 << 30) for _ in range(4)]


def learned(exchanges: list[Exchange]) -> Flows:
    pipeline = Pipeline(CleanseSettings(), "recording")
    for exchange in sorted(pipeline.sift(exchanges), key=lambda e: e.request_start_ns):
        pipeline.learn(exchange)
    return pipeline.flows


def plain(flows: Flows, trace: Trace) -> set[str]:
    """The flows with the drawn names replaced by what they stand for."""
    lines = set()
    for f in flows.flows:
        source = f"{f.source_route} {f.source.kind} {f.source.name}"
        line = f"{source} > {f.sink_route} {f.sink.kind} {f.sink.name} {f.sink.prefix}"
        for meaning in _FIELDS:
            line = line.replace(getattr(trace.names, meaning), meaning)
        lines.add(line.strip())
    return lines


_FIELDS = list(synthetic_trace.Names.__dataclass_fields__)
_WITH_TOKEN = [
    "GET /things", "POST /basket", "PUT /basket/{id}", "POST /buys", "GET /buys/{id}", "PATCH /buys/{id}",
    "GET /bills/{id}",
]  # fmt: skip
EXPECTED = (
    {f"POST /enter json $.wrapper.token > {route} header authorization Bearer" for route in _WITH_TOKEN}
    | {f"POST /enter cookie cookie > {route} cookie cookie" for route in _WITH_TOKEN}
    | {
        "GET /things header x-header > POST /basket header x-header",
        "POST /basket json $.line > PUT /basket/{id} path 1",
        "POST /buys json $.wrapper.order > GET /buys/{id} path 1",
        "POST /buys json $.wrapper.order > PATCH /buys/{id} path 1",
        "POST /buys json $.wrapper.order > PATCH /buys/{id} json $.wrapper.order",
        "POST /buys json $.echo > GET /bills/{id} path 1",  # a plain number of four digits
    }
)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_flows_are_learned_whatever_the_names(seed: int) -> None:
    print(f"seed {seed}")
    trace = synthetic_trace.make(seed)
    assert plain(learned(trace.exchanges), trace) == EXPECTED
    masked = mask(trace)
    assert plain(learned(masked), trace) == EXPECTED
    for secret in trace.secrets:
        assert not holds(masked, secret), f"{secret} is in the masked recording"


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_the_search_finds_secrets_where_nothing_is_masked(seed: int) -> None:
    """Negative control of the search above; and of masking: without the name of the password it is found."""
    print(f"seed {seed}")
    trace = synthetic_trace.make(seed)
    assert trace.secrets
    for secret in trace.secrets:
        assert holds(trace.exchanges, secret)
    without = [Masker(KEY).exchange(e) for e in trace.exchanges]
    assert any(holds(without, secret) for secret in trace.secrets)


def mask(trace: Trace) -> list[Exchange]:
    masker = Masker(KEY, MaskSettings(fields=(trace.names.password,)))
    return [masker.exchange(e) for e in trace.exchanges]


def holds(exchanges: list[Exchange], secret: str) -> bool:
    """Whether a value stands anywhere in the records, also inside encoded bodies."""
    needle = secret.encode()
    for e in exchanges:
        if needle in msgspec.msgpack.encode(e):
            return True
        for message in (e.request, e.response):
            if message is not None and message.body:
                opened = content.decoded(message.body, content.codings_of(message.head))
                assert opened is not None
                if needle in opened[0]:
                    return True
    return False


# ---------------------------------------------------------------------------- what is no flow


def exchange(
    session: int, at: int, target: str, sent: object = None, given: object = None, *, took_ms: float = 0.5
) -> Exchange:
    body = json.dumps(sent).encode() if sent is not None else b""
    out = json.dumps(given).encode() if given is not None else b""
    start = START_NS + at * 10 * MS
    kind = b"Content-Type: application/json\r\n"
    me = session.to_bytes(16, "big")
    method, _, path = target.partition(" ")
    return Exchange(
        random.randbytes(16), me, me, "10.0.0.1:1", "10.1.0.1:80",
        Request(f"{method} {path} HTTP/1.1\r\n".encode() + kind + b"\r\n", body, len(body)),
        Response(200, b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n", out, len(out)),
        start, start + 1, start + round(took_ms * MS), start + round(took_ms * MS) + 1,
    )  # fmt: skip


def only(flows: Flows) -> list[tuple[str, str, str, str]]:
    return [(f.source_route, f.source.name, f.sink_route, f.sink.name) for f in flows.flows]


def test_values_that_every_session_is_handed_stand_for_themselves() -> None:
    exchanges = []
    for session in range(1, 9):
        exchanges.append(
            exchange(session, session * 10, "GET /a", given={"v": "constant-12345", "w": f"own-{session}9988"})
        )
        exchanges.append(
            exchange(session, session * 10 + 1, "POST /b", sent={"x": "constant-12345", "y": f"own-{session}9988"})
        )
    assert only(learned(exchanges)) == [("GET /a", "$.w", "POST /b", "$.y")]


def test_what_the_client_says_first_is_its_own() -> None:
    exchanges = []
    for session in range(1, 6):
        name = f"client-made-{session}7766"
        exchanges.append(exchange(session, session * 10, "POST /a", sent={"n": name}, given={"n": name}))
        exchanges.append(exchange(session, session * 10 + 1, "POST /b", sent={"n": name}))
    assert only(learned(exchanges)) == []


def test_an_answer_that_came_later_hands_nothing_out() -> None:
    def trace(took_ms: float) -> list[Exchange]:
        return [
            e
            for session in range(1, 6)
            for e in (
                exchange(session, session * 10, "GET /a", given={"v": f"late-{session}7766"}, took_ms=took_ms),
                exchange(session, session * 10 + 1, "POST /b", sent={"v": f"late-{session}7766"}),
            )
        ]

    assert only(learned(trace(15))) == []
    assert only(learned(trace(5))) == [("GET /a", "$.v", "POST /b", "$.v")]


def test_quantities_that_happen_to_agree_are_no_flow() -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed}")
    exchanges = []
    for session in range(1, 60):
        exchanges.append(
            exchange(session, session * 10, "GET /a", given={"total": rng.randrange(10**5), "n": rng.randint(1, 99)})
        )
        exchanges.append(
            exchange(
                session, session * 10 + 1, "POST /b", sent={"count": rng.randint(1, 99), "zip": rng.randrange(10**5)}
            )
        )
    assert only(learned(exchanges)) == []


def test_a_value_of_another_session_is_no_flow() -> None:
    exchanges = []
    for session in range(1, 9):
        exchanges.append(exchange(session, session * 10, "GET /a", given={"v": f"thing-{session}5544"}))
        exchanges.append(exchange(session + 100, session * 10 + 1, "POST /b", sent={"v": f"thing-{session}5544"}))
    assert only(learned(exchanges)) == []


def test_elements_of_a_list_are_one_place_and_the_earliest_place_is_kept() -> None:
    exchanges = []
    for session in range(1, 6):
        ids = [f"line-{session}-{n}55" for n in range(3)]
        exchanges.append(exchange(session, session * 10, "GET /list", given={"items": [{"id": i} for i in ids]}))
        exchanges.append(exchange(session, session * 10 + 1, f"GET /one/{ids[1]}", given={"id": ids[1]}))
        exchanges.append(exchange(session, session * 10 + 2, f"DELETE /one/{ids[1]}"))
    assert only(learned(exchanges)) == [
        ("GET /list", "$.items[*].id", "DELETE /one/{id}", "1"),
        ("GET /list", "$.items[*].id", "GET /one/{id}", "1"),
    ]


def test_one_session_alone_proves_a_token_but_not_a_word() -> None:
    token = "k9J2mQ8xL4pR7vT1nB5c"
    exchanges = [exchange(1, 0, "POST /in", given={"t": token, "w": "plain-word-7"})]
    exchanges += [exchange(1, at, "POST /b", sent={"t": token, "w": "plain-word-7"}) for at in range(1, 4)]
    assert only(learned(exchanges)) == [("POST /in", "$.t", "POST /b", "$.t")]


@pytest.mark.parametrize(
    ("value", "can"),
    [
        ("k9J2mQ8x", True), ("17", True), ("P0001", True), ("", False), ("true", False), ("pending", False),
        ("not-found", False), ("application/json", False), ("12.50", False), ("2026-11-20T10:00:00Z", False),
        ("two words 17", False), ("x" * 9000, False), ("user@mail.example", True),
    ],
)  # fmt: skip
def test_what_can_be_a_value_that_is_handed_out(value: str, can: bool) -> None:
    assert is_candidate(value) is can


@pytest.mark.parametrize(("before", "learns"), [(0, True), (70_000, False)])
def test_what_stands_behind_the_part_of_an_answer_that_is_kept_is_no_source(before: int, learns: bool) -> None:
    """Who fires has no more of the recorded answer, and would find nothing in its place."""
    learner = FlowLearner()
    for n in range(6):
        token = f"{n:09d}token"
        given = {"filler": "f" * before, "token": token}
        for number, e in enumerate(
            (exchange(n, 2 * n, "POST /login", given=given), exchange(n, 2 * n + 1, "POST /me", sent={"token": token}))
        ):
            learner.add(e, e.session_id, ("POST /login", "POST /me")[number], e.request_start_ns)
    assert bool(learner.flows("r").flows) is learns


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import cleanse.flows as module

    for name in ("MAX_SESSIONS", "MAX_VALUES", "MAX_OWNED", "MAX_SOURCES", "MAX_PAIR_VALUES"):
        monkeypatch.setattr(module, name, 20)
    learner = FlowLearner()
    for n in range(200):
        e = exchange(n % 50, n, "POST /a", sent={"s": f"{n:09d}x"}, given={"v": [f"{n:09d}{i}y" for i in range(30)]})
        learner.add(e, e.session_id, f"POST /{n % 40}", e.request_start_ns)
    assert len(learner._sessions) <= 20 and len(learner._named) <= 20
    assert all(len(s.handed) <= 20 and len(s.sent) <= 20 for s in learner._sessions.values())
    assert all(len(owned) <= 20 for owned in learner._owners)


def test_flows_can_be_read_back() -> None:
    trace = synthetic_trace.make(1)
    for flow in learned(trace.exchanges).flows:
        assert isinstance(flow, Flow) and flow.support >= flow.examples >= 1
        assert flow.source.kind is not PlaceKind.PATH
    assert head.method_of(trace.exchanges[0].request.head) == b"POST"
