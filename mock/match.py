"""Which recorded answer fits a request best.

Candidates share method, path shape and the names of query parameters. Among them equal path segments
count most, then equal query values, then equal fields of the body. A value that changes with
every request (an order id, a time) equals none and so weighs nothing; it need not be known
which those are. Equally good candidates are served in turn.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl, unquote

from mock.answers import Answer
from wire.head import field, request_head

Feature = tuple[str, str, str]  # where (path, query, body), name, value
Group = tuple[str, str, tuple[str, ...]]  # method, path shape, names of query parameters

_WEIGHTS = {"path": 1_000_000, "query": 10_000, "body": 4}
_MAX_FIELDS = 200
_MAX_DECODED_BYTES = 16 << 20
# A segment that may be an id: with a digit and four characters or more, or very long.
_VOLATILE = re.compile(r"(?=.*\d).{4,}|.{20,}")


class _Candidates:
    """The answers of one group, found by what they have in common with a request."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.shapes: dict[frozenset[str], list[int]] = defaultdict(list)
        self._shape_of: list[frozenset[str]] = []
        self._by_feature: dict[Feature, list[int]] = defaultdict(list)
        self._turn = 0

    def add(self, answer: Answer, features: Sequence[Feature]) -> None:
        index = len(self.answers)
        shape = _names(features)
        self.answers.append(answer)
        self.shapes[shape].append(index)
        self._shape_of.append(shape)
        for feature in set(features):
            self._by_feature[feature].append(index)

    def best(self, features: Sequence[Feature]) -> Answer:
        asked = _names(features)
        # How well the names of fields agree, whatever the values.
        base = {shape: 2 * len(shape & asked) - len(shape ^ asked) for shape in self.shapes}
        extra: Counter[int] = Counter()
        for feature in set(features):
            found = self._by_feature.get(feature, ())
            if len(found) < len(self.answers):  # what all have tells none apart
                for index in found:
                    extra[index] += _WEIGHTS[feature[0]]
        scores = {index: base[self._shape_of[index]] + more for index, more in extra.items()}
        top = max(scores.values(), default=-_MAX_FIELDS * 2)
        plain = max(base, key=lambda shape: base[shape])
        if base[plain] > top:
            equal = [index for index in self.shapes[plain] if index not in extra]
            equal = equal or self.shapes[plain]
        else:
            equal = [index for index, score in scores.items() if score == top]
        self._turn += 1
        return self.answers[sorted(equal)[(self._turn - 1) % len(equal)]]


class Matcher:
    """All recorded answers. `find` is for one thread."""

    def __init__(self, answers: Iterable[Answer], max_answers: int = 50_000) -> None:
        self._groups: dict[Group, _Candidates] = {}
        self.count = 0
        self.surplus = 0
        for answer in answers:
            if self.count >= max_answers:
                self.surplus += 1
                continue
            parts = request_head(answer.request_head)
            group, features = describe(parts.method.decode("latin-1"), parts.target.decode("latin-1"))
            features += body_features(
                answer.request_body,
                (field(answer.request_head, b"content-type") or b"").decode("latin-1"),
                (field(answer.request_head, b"content-encoding") or b"").decode("latin-1"),
            )
            self._groups.setdefault(group, _Candidates()).add(answer, features)
            self.count += 1

    def find(self, method: str, target: str, body: bytes, content_type: str = "") -> Answer | None:
        """The best answer for a request (body without content coding), None when no candidate shares its shape."""
        group, features = describe(method, target)
        candidates = self._groups.get(group)
        return candidates.best(features + body_features(body, content_type)) if candidates else None


def describe(method: str, target: str) -> tuple[Group, list[Feature]]:
    """The group of a request, and the features of its target; a target in absolute form loses its origin."""
    if "://" in target.partition("?")[0]:
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    segments = [unquote(segment) for segment in path.split("/")]
    shape = "/".join("{}" if _VOLATILE.fullmatch(segment) else segment for segment in segments)
    pairs = parse_qsl(query.partition("#")[0], keep_blank_values=True)
    features: list[Feature] = [("path", str(index), segment) for index, segment in enumerate(segments)]
    features += [("query", name, value) for name, value in pairs]
    return (method.upper(), shape, tuple(sorted(name for name, _ in pairs))), features


def body_features(body: bytes, content_type: str, content_encoding: str = "") -> list[Feature]:
    """The fields of a JSON or form body; of any other its digest. At most 200."""
    if content_encoding in ("gzip", "deflate"):
        try:
            body = zlib.decompressobj(47).decompress(body, _MAX_DECODED_BYTES)  # 47: gzip or zlib, told by its header
        except zlib.error:
            pass
    if not body:
        return []
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        pairs = parse_qsl(body.decode("latin-1"), keep_blank_values=True)
        return [("body", name, value) for name, value in pairs[:_MAX_FIELDS]]
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return [("body", "", hashlib.blake2b(body, digest_size=16).hexdigest())]
    found: list[Feature] = []
    _walk("$", document, found)
    return found


def _walk(path: str, value: object, found: list[Feature]) -> None:
    # A list's members are compared as a set: their order, and how many there are, says little.
    stack = [(path, value)]
    while stack and len(found) < _MAX_FIELDS:
        at, item = stack.pop()
        if isinstance(item, dict):
            stack.extend((f"{at}.{name}", member) for name, member in item.items())
        elif isinstance(item, list):
            stack.extend((f"{at}[*]", member) for member in item)
        else:
            found.append(("body", at, json.dumps(item)))


def _names(features: Iterable[Feature]) -> frozenset[str]:
    return frozenset(name for where, name, _ in features if where == "body")
