"""Every record that crosses a process boundary.

Rules of this file: frozen, array-like `msgspec.Struct`s; fields are only ever appended, each new one
with a default, so that an old file opens in a new program and the other way round. Times are int64
nanoseconds and say so in their name. Ids are raw bytes (see `wire.ids`).

A message's head is kept as the bytes that were seen, from the start line up to and including the
empty line, and is parsed on demand: exact, and six times cheaper than a list of header pairs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

import msgspec


# What comes off the wire holds no cycles, so the collector need not look at it: a fifth of the cost of decoding.
class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=False, gc=False):
    """Base of all records."""


# ---------------------------------------------------------------------------- recordings and runs


class Manifest(Record, frozen=True, array_like=True):
    """The first batch of every log file: what it is, and where it comes from."""

    topic: str
    partition: str
    owner_id: str  # recording id (raw, clean) or run id (all others)
    created_ns: int
    writer: str  # program and version that wrote it
    hosts: tuple[str, ...] = ()
    scale: float = 1.0  # the share of production that was recorded, 0 < scale <= 1
    settings: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()  # what it was made from: file names, interfaces, upstream recordings
    sorted: bool = False  # records are in time order
    masked: bool = True
    servers: tuple[str, ...] = ()  # "ip:port" of the servers whose traffic it holds, as far as its writer says so
    #: Added to the writer's own clock to get the times in it: the bus's clock less its own, when it began.
    clock_offset_ns: int = 0
    clock_error_ns: int = 0  # how far that may be off; 0 with an offset of 0: not measured


class End(Record, frozen=True, array_like=True):
    """The last batch of a partition that is whole. A file without one was cut off, or is still written."""

    owner_id: str
    partition: str
    count: int  # records in the partition, of all batches
    first_ns: int
    last_ns: int
    reason: str = "done"  # done | stopped | failed | rotated
    sorted: bool = False
    stopped_ns: int = 0  # of a live recording: until when it looked, unix time; 0 = not told


# ---------------------------------------------------------------------------- capture


class Framing(StrEnum):
    """How the end of a body was known (RFC 9112 section 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Mode(StrEnum):
    """How strictly the message could be read."""

    STRICT = "strict"
    LENIENT = "lenient"
    OPAQUE = "opaque"


class Fault(StrEnum):
    """What is known to be wrong with an exchange."""

    GAP = "gap"  # bytes were lost inside it
    MIDSTREAM = "midstream"  # its connection was already open when recording began
    UNFINISHED = "unfinished"  # the connection or the recording ended inside it
    AMBIGUOUS = "ambiguous"  # overlapping segments differed, or lengths conflict: never replayed
    TRUNCATED = "truncated"  # the body is longer than what is kept
    LATE = "late"  # the answer began before the request was complete


class Request(Record, frozen=True, array_like=True):
    head: bytes
    body: bytes = b""  # de-chunked, not content-decoded
    body_bytes: int = 0  # de-chunked length as it was seen on the wire, before masking and truncation
    framing: Framing = Framing.NONE
    missing_bytes: int = 0
    truncated_bytes: int = 0  # of the body, not kept; -1 = how many there were is not known (a log has no bodies)
    trailers: bytes = b""


class Response(Record, frozen=True, array_like=True):
    status: int  # 100..999
    head: bytes
    body: bytes = b""
    body_bytes: int = 0
    framing: Framing = Framing.NONE
    missing_bytes: int = 0
    truncated_bytes: int = 0
    trailers: bytes = b""
    interim: tuple[bytes, ...] = ()  # heads of 1xx answers that came before


class Exchange(Record, frozen=True, array_like=True):
    """One request and its answer, as they were seen."""

    exchange_id: bytes  # 16 bytes
    session_id: bytes  # 16 bytes, keyed hash made at capture
    connection_id: bytes  # 16 bytes
    client: str  # ip:port, IPv6 in brackets
    server: str
    request: Request
    response: Response | None  # None: no answer was seen
    request_start_ns: int  # 1970 epoch; 0 = not seen
    request_end_ns: int
    response_start_ns: int
    response_end_ns: int
    mode: Mode = Mode.STRICT
    interface: str = ""
    protocol: str = "http/1"
    faults: tuple[Fault, ...] = ()
    host: str = ""  # the agent that saw it


# ---------------------------------------------------------------------------- cleanse


class Baseline(Record, frozen=True, array_like=True):
    """What production answered; what a live answer is compared with."""

    status: int  # 0 = no answer was seen
    latency_ns: int  # request start to first byte of the answer; 0 = unknown
    head: bytes
    body: bytes  # the first 64 KiB
    body_bytes: int  # whole length as it was on the wire; -1 = not known
    digest: bytes  # sha256 of the stored body, empty if there is none


class Stamped(Record, frozen=True, array_like=True):
    """An exchange that is fit to be fired: cleaned, named, in order."""

    exchange_id: bytes
    session_id: bytes
    route: str  # "GET /orders/{id}"
    offset_ns: int  # from the first request of the recording
    request: Request
    baseline: Baseline
    session_start_ns: int = 0  # offset of the session's first request
    session_index: int = 0  # 0, 1, 2 ... inside the session
    unsafe: bool = False  # the method may change state (RFC 9110 section 9.2.1)


class PlaceKind(StrEnum):
    PATH = "path"  # name = index of the segment, "0" is the first
    QUERY = "query"
    HEADER = "header"  # name in lower case; the value, without a prefix such as "Bearer "
    COOKIE = "cookie"  # Cookie in requests, Set-Cookie in answers
    FORM = "form"
    JSON = "json"  # name = a path such as "$.items[*].id"


class Place(Record, frozen=True, array_like=True):
    """Where a value stands in a request or an answer."""

    kind: PlaceKind
    name: str
    prefix: str = ""  # what stands before the value and is kept, e.g. "Bearer "


class Flow(Record, frozen=True, array_like=True):
    """A value that an answer hands out and later requests of the session send back."""

    source_route: str
    source: Place  # in the answer
    sink_route: str
    sink: Place  # in the request
    support: int = 0  # how many times it was seen in the recording
    examples: int = 0  # distinct values


class Flows(Record, frozen=True, array_like=True):
    recording_id: str
    flows: tuple[Flow, ...]


class Route(Record, frozen=True, array_like=True):
    name: str  # "GET /orders/{id}"
    method: str
    pattern: tuple[str, ...]  # path segments; "{...}" matches any one segment
    count: int = 0


class RouteTable(Record, frozen=True, array_like=True):
    recording_id: str
    routes: tuple[Route, ...]


# ---------------------------------------------------------------------------- replay


class Kind(StrEnum):
    STRESS = "stress"
    PRODUCTION = "production"
    CANARY = "canary"


class Failure(StrEnum):
    """Why a shot has no answer, or was not sent. The set is closed."""

    NONE = ""
    CONNECT = "connect"  # refused, unreachable
    TIMEOUT = "timeout"
    RESET = "reset"
    PROTOCOL = "protocol"  # the answer could not be read
    SHED_RATE = "shed_rate"  # the hard cap on the rate
    SHED_OPEN = "shed_open"  # the hard cap on open shots
    SHED_LATE = "shed_late"  # could not be sent near its due time
    SHED_FLOW = "shed_flow"  # a value that it needs was never handed out
    SHED_STEP = "shed_step"  # its copy was cut when the step went down
    SHED_STOP = "shed_stop"  # the run was stopped
    GIVEN_UP = "given_up"  # sent, and still without an answer when the run was stopped
    UNKNOWN = "unknown"  # claimed, then the process died: may or may not have been sent


class Verdict(StrEnum):
    """The live answer beside the recorded one."""

    NONE = "none"  # nothing to compare
    SAME = "same"
    STATUS = "status"
    LENGTH = "length"


class ShotKey(Record, frozen=True, array_like=True):
    """Names a shot among all shots of a run."""

    exchange_id: bytes
    copy: int
    lap: int
    step: int
    route: str
    due_ns: int


class Claim(Record, frozen=True, array_like=True):
    """Written before the slice is fired: what is claimed is never fired again."""

    run_id: str
    worker: str
    slice_index: int
    shots: tuple[ShotKey, ...]


class Shot(Record, frozen=True, array_like=True):
    """Feeder to firer."""

    key: ShotKey
    serial: int  # unique inside a worker
    wire: bytes  # the rendered request, but for the marker, which is made when it is fired
    head_only: bool = False  # HEAD: the answer has no body
    waits_for: tuple[int, ...] = ()  # serials that must be answered first
    kind: Kind = Kind.STRESS


class Outcome(Record, frozen=True, array_like=True):
    """What became of one shot (or, with kind production, of one recorded exchange)."""

    run_id: str
    exchange_id: bytes
    copy: int
    lap: int
    step: int  # index in the plan; -1 = outside of any step
    route: str
    kind: Kind
    due_ns: int  # when it should have left
    sent_ns: int  # first byte written; 0 = never sent
    first_byte_ns: int  # 0 = no answer
    done_ns: int
    pool_wait_ns: int
    status: int  # 0 = none
    failure: Failure
    bytes_out: int
    bytes_in: int  # of the answer's body
    verdict: Verdict
    worker: str = ""


# ---------------------------------------------------------------------------- analytics


class Sketch(Record, frozen=True, array_like=True):
    """A base-2 exponential histogram as it travels; see `wire.sketch` for the arithmetic."""

    scale: int
    zero: int
    indexes: tuple[int, ...]  # ascending
    counts: tuple[int, ...]
    max_value: int = 0
    total: int = 0  # sum of the values


class SourceRange(Record, frozen=True, array_like=True):
    """The half-open range of batches that something was made from."""

    topic: str
    partition: str
    first: int
    end: int


class Pane(Record, frozen=True, array_like=True):
    """Additive counts of one second. Sums of panes are windows."""

    second: int  # unix second
    run_id: str
    step: int
    route: str
    kind: Kind
    status_class: int  # 0 = no status, 2 = 2xx ...
    offered: int  # shots that were due in this second, shed ones too
    completed: int  # answered in this second
    errors: int  # failed or status >= 500, by completion
    shed: int
    unknown: int
    differing: int  # verdicts other than same and none
    bytes_out: int
    bytes_in: int
    from_due: Sketch  # latency in ns, from when it should have left
    from_send: Sketch
    open_shots: int = 0  # at the end of the second (gauge, not additive over time)
    oldest_open_ns: int = 0
    source: tuple[SourceRange, ...] = ()


# ---------------------------------------------------------------------------- accounts, audit


class Drop(Record, frozen=True, array_like=True):
    stage: str
    reason: str
    intentional: bool
    count: int


class Dead(Record, frozen=True, array_like=True):
    topic: str
    partition: str
    offset: int
    data: bytes
    error: str
    stage: str = ""


class Sample(Record, frozen=True, array_like=True):
    at_ns: int
    process: str
    pid: int
    cpu_s: float
    rss_bytes: int
    values: dict[str, float] = {}


class Exemplar(Record, frozen=True, array_like=True):
    outcome: Outcome
    request_head: bytes  # masked
    response_head: bytes  # masked


class Audit(Record, frozen=True, array_like=True):
    at_ns: int
    who: str
    action: str
    detail: dict[str, Any] = {}


# ---------------------------------------------------------------------------- control


class Action(StrEnum):
    PLAN = "plan"
    STEP = "step"
    HOLD = "hold"
    STOP = "stop"
    END = "end"  # the last step is over: finish what is open, then leave


class Control(Record, frozen=True, array_like=True):
    run_id: str  # "*" = every run
    sequence: int
    action: Action
    effective_ns: int  # wall time from which it holds
    step: int = -1
    load: float = 0.0  # multiple of the recording's rate, of all workers together
    reason: str = ""
    issued_ns: int = 0
    until_ns: int = 0  # a step's planned end, or when a plan is stale; 0 = open
    plan: bytes = b""  # with action "plan": one worker's settings, as JSON


class Lease(Record, frozen=True, array_like=True):
    run_id: str
    sequence: int
    issued_ns: int
    expires_ns: int  # without a newer lease no shot leaves after this


class Beat(Record, frozen=True, array_like=True):
    """A worker's sign of life, every 250 ms."""

    run_id: str
    worker: str
    at_ns: int
    pid: int
    step: int
    sent: int  # so far
    answered: int
    open_shots: int
    oldest_open_ns: int  # age; 0 = none open
    lag_ns: int  # how far behind due time the latest shot left
    cpu_s: float
    last_sent_ns: int = 0
    state: str = "running"  # starting | running | holding | stopping | stopped | failed
    reason: str = ""
    open_ages_ns: tuple[int, ...] = ()  # the oldest first, at most 64


AnyRecord: TypeAlias = (
    Manifest
    | End
    | Exchange
    | Stamped
    | Flows
    | RouteTable
    | Claim
    | Shot
    | Outcome
    | Pane
    | Drop
    | Dead
    | Sample
    | Exemplar
    | Audit
    | Control
    | Lease
    | Beat
)
