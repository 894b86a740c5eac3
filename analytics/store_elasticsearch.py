"""Panes and windows in Elasticsearch.

What one `apply` adds is one document, created under a name made of where its source ranges begin: so it is there whole
or not at all, and what is sent again meets its first copy. Windows are written from stored panes, by `refresh_windows`,
under names and revisions of their own: written twice they are the same. Nothing is written before the mapping of its
index is known to be ours, as an index that guesses types cannot be mended.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from analytics import documents, templates
from analytics.documents import Document, RunFacts
from analytics.elasticsearch_client import Client, Refused
from analytics.elasticsearch_indices import Indices
from analytics.fields import NAME, SERIES, Series
from analytics.panes import PaneKey, add_panes, key_of
from analytics.running_windows import RunningWindows
from analytics.source_ranges import SourceRanges
from analytics.store_address import StoreAddress
from analytics.store_port import StoreError
from analytics.windows import Window, windows
from wire.records import Exemplar, Pane, SourceRange

_PAGE: Final = 50  # documents of panes in one answer: each may be a megabyte


def open_at(where: StoreAddress, run_id: str, *, write: bool) -> ElasticsearchStore:
    """The store of one run. Raises StoreAway, StoreError; for a reader also where the run has nothing."""
    client = Client(where)
    try:
        return ElasticsearchStore(client, run_id, name=where.name or NAME, write=write)
    except BaseException:
        client.close()
        raise


def ahead_at(where: StoreAddress) -> IndicesAhead:
    """What makes the indices before a run needs them. Raises StoreAway, StoreError."""
    return IndicesAhead(Client(where), where.name or NAME)


def _now_s() -> int:
    return int(datetime.now(UTC).timestamp())


class IndicesAhead:
    """Indices of today and of tomorrow, so that no window waits for its index to be made."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._indices, self._installed = client, Indices(client, name), False

    def make(self) -> None:
        """What is missing; of tomorrow's one a call. Raises StoreAway, StoreError: call again."""
        if not self._installed:
            self._indices.install()
            self._installed = True
        self._indices.make_ahead(_now_s())

    def close(self) -> None:
        self._client.close()


class ElasticsearchStore:
    """One run's panes, windows and exemplars. `name` is what its indices begin with."""

    def __init__(self, client: Client, run_id: str, *, name: str = NAME, write: bool = True) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,60}", name):
            raise StoreError(f"{client.where}: {name!r} cannot begin an index's name: small letters, digits, - and _")
        self._client, self._run_id, self._name, self._write = client, run_id, name, write
        self._me = secrets.token_hex(8)
        self._run: dict[str, Any] = {}
        self._place: dict[str, int] = {}  # of the run's document: seq_no and primary_term
        self._held = SourceRanges()
        self._number = 0
        self._indices = Indices(client, name)
        self._unsure: list[SourceRange] | None = None  # sent, and nobody knows whether they are there
        self._unseen: list[tuple[int, int]] = []  # spans of seconds whose windows are to be looked after
        self._running: RunningWindows | None = None
        if write:
            self._indices.install()
            self._claim()
        elif not self._read_run():
            raise StoreError(f"{client.where}: holds nothing of run {run_id}")

    # -- writing

    def apply(self, panes: Sequence[Pane], sources: Sequence[SourceRange]) -> bool:
        sources = [source for source in sources if source.end > source.first]
        if self._unsure is not None and self._unsure != sources:
            self._claim()
        if not sources or self._held.hold(sources, str(self._client.where)):
            return False
        self._alone()
        self._indices.ensure(self._index, templates.RANGE_PROPERTIES)
        made = documents.range_document(self._run_id, self._index, self._me, self._number + 1, panes, sources)
        self._unsure = sources
        self._client.bulk([made])  # what is there under this name already was sent by us: an answer was lost
        self._unsure = None
        self._number += 1
        self._held.add(sources)
        if self._running is not None:
            self._running.add(panes)
        elif panes:
            self._unseen.append((made.source["first_s"], made.source["last_s"]))
        return True

    def resume(self, topic: str, partition: str) -> int:
        if self._unsure is not None:
            self._claim()
        return self._held.end_of(topic, partition)

    def set_note(self, name: str, value: str) -> None:
        if self._run["notes"].get(name) != value:
            self._save(notes={**self._run["notes"], name: value})

    def refresh_windows(self, *, all_series: bool = True) -> int:
        """Write the windows that changed since the last time; how many were new or newer. Raises StoreAway, StoreError.

        They go by the notes: `start_s` (without it there are none yet), `watermark_s`, `service`, `speed`, and
        `loads` (JSON: step -> copies). When it fails, the next call writes what this one did not. Those of the default
        series can be found when it returns; the others, which are left out without `all_series`, with the next refresh.
        """
        running = self._windows()
        if running is None:
            return 0
        mark = self._run["notes"].get("watermark_s")
        running.watermark_s = None if mark is None else int(mark)
        facts, number = self._facts(), self._number
        first = tuple(series for series in SERIES if series.default)
        try:
            written = self._client.bulk(self._window_documents(running, facts, first), refresh=True)
            if not all_series:
                return written
            written += self._client.bulk(self._window_documents(running, facts, SERIES))
        except BaseException:
            running.again()
            raise
        if number != self._run["number"]:
            self._save(number=number, held=self._held.as_lists())
        return written

    def exemplars(self, made: Sequence[Exemplar]) -> int:
        """Keep slow and failed shots; how many were new. Their heads must be masked by who made them."""
        if made:
            self._indices.check_stream()
        facts = self._facts()
        return self._client.bulk(documents.exemplar_document(one, facts, name=self._name) for one in made)

    # -- reading

    def panes(self, run_id: str, first_s: int | None = None, end_s: int | None = None) -> list[Pane]:
        found: dict[PaneKey, Pane] = {}
        for pane in self._stored(first_s, end_s):
            if pane.run_id == run_id:
                key = key_of(pane)
                found[key] = add_panes(found[key], pane) if key in found else pane
        return [found[key] for key in sorted(found)]

    def windows(
        self, run_id: str, *, every_s: int, over_s: int, start_s: int, watermark_s: int | None = None
    ) -> list[Window]:
        found = self.panes(run_id)
        return list(windows(found, every_s=every_s, over_s=over_s, start_s=start_s, watermark_s=watermark_s))

    def note(self, name: str) -> str | None:
        if not self._write:
            self._read_run()
        value = self._run["notes"].get(name)
        return None if value is None else str(value)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> ElasticsearchStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- windows

    def _windows(self) -> RunningWindows | None:
        start = self._run["notes"].get("start_s")
        if self._running is None and start is not None:
            self._running = RunningWindows(self._run_id, int(start), self._stored, span=self._span())
            for series in SERIES:
                for first in self._growing(series.name):
                    self._running.growing(series, first)
        if self._running is not None:
            for first, last in self._unseen:
                self._running.touch(first, last)
            self._unseen = []
        return self._running

    def _window_documents(
        self, running: RunningWindows, facts: RunFacts, some: Collection[Series]
    ) -> Iterator[Document]:
        for series, window in running.take(some):
            made = documents.window_document(
                window, series, facts, name=self._name, histograms=self._indices.histograms
            )
            self._indices.ensure_windows(made.index, window.start_s)
            yield made

    def _facts(self) -> RunFacts:
        notes: Mapping[str, str] = self._run["notes"]
        loads = {int(step): float(load) for step, load in json.loads(notes.get("loads", "{}")).items()}
        speed = notes.get("speed")
        return RunFacts(notes.get("service", NAME), None if speed is None else float(speed), loads)

    def _growing(self, series: str) -> Iterator[int]:
        """Where windows begin that were written and are not final."""
        after: dict[str, Any] = {}
        terms = [{"term": {"livefire.run_id": self._run_id}}, {"term": {"livefire.window": series}}]
        index = f"/{self._name}-totals-*"
        self._client.request("POST", f"{index}/_refresh", params={"ignore_unavailable": "true"})
        while True:
            body = {
                "size": 0,
                "query": {"bool": {"filter": [*terms, {"term": {"livefire.final": False}}]}},
                "aggs": {"starts": {"composite": {
                    "size": 1000, "sources": [{"at": {"terms": {"field": "@timestamp"}}}], **after,
                }}},
            }  # fmt: skip
            answer = self._client.request("POST", f"{index}/_search", body, params={"ignore_unavailable": "true"})
            starts = answer.get("aggregations", {}).get("starts", {})
            for bucket in starts.get("buckets", ()):
                yield int(bucket["key"]["at"]) // 1000
            if "after_key" not in starts:
                return
            after = {"after": starts["after_key"]}

    # -- panes

    def _stored(self, first_s: int | None = None, end_s: int | None = None) -> Iterator[Pane]:
        """What was applied of these seconds, as it was applied."""
        query: list[Mapping[str, Any]] = []
        if first_s is not None:
            query.append({"range": {"last_s": {"gte": first_s}}})
        if end_s is not None:
            query.append({"range": {"first_s": {"lt": end_s}}})
        for source in self._ranges(query, ["panes", "writer", "number"]):
            for pane in documents.panes_of(source):
                if (first_s is None or first_s <= pane.second) and (end_s is None or pane.second < end_s):
                    yield pane

    def _ranges(self, query: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Documents of one moment of the store, those that count, in the order in which they came."""
        if self._client.request("POST", f"/{self._index}/_refresh", absent=True) is None:
            return
        pit = self._client.request("POST", f"/{self._index}/_pit", params={"keep_alive": "1m"})["id"]
        try:
            if not self._write:
                self._read_run()
            after: dict[str, Any] = {}
            while True:
                body = {
                    "size": _PAGE if "panes" in wanted else 10_000,
                    "query": {"bool": {"filter": [{"term": {"run": self._run_id}}, *query]}},
                    "sort": [{"number": "asc"}, {"_shard_doc": "asc"}],
                    "pit": {"id": pit, "keep_alive": "1m"},
                    "_source": list(wanted),
                    "track_total_hits": False,
                    **after,
                }
                hits = self._client.request("POST", "/_search", body)["hits"]["hits"]
                yield from (hit["_source"] for hit in hits if self._counts(hit["_source"]))
                if not hits:
                    return
                after = {"search_after": hits[-1]["sort"]}
        finally:
            self._client.request("DELETE", "/_pit", {"id": pit}, absent=True)

    def _counts(self, source: Mapping[str, Any]) -> bool:
        writer, former = source["writer"], self._run["former"]
        if writer == self._run["writer"]:
            return True
        return writer in former and (former[writer] is None or source["number"] <= former[writer])

    def _span(self) -> tuple[int, int] | None:
        """The first and the last second of all that was applied."""
        if self._client.request("POST", f"/{self._index}/_refresh", absent=True) is None:
            return None
        aggs = {"first": {"min": {"field": "first_s"}}, "last": {"max": {"field": "last_s"}}}
        body = {"size": 0, "query": {"term": {"run": self._run_id}}, "aggs": aggs}
        found = self._client.request("POST", f"/{self._index}/_search", body)["aggregations"]
        first, last = found["first"]["value"], found["last"]["value"]
        return None if first is None or last is None else (int(first), int(last))

    # -- the run's document

    @property
    def _index(self) -> str:
        return str(self._run["panes_index"])

    @property
    def _run_path(self) -> str:
        return f"/{templates.runs_index(self._name)}/_doc/{quote(self._run_id, safe='')}"

    def _read_run(self) -> bool:
        found = self._client.request("GET", self._run_path, absent=True)
        if found is None:
            return False
        self._run = found["_source"]
        self._place = {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
        return True

    def _claim(self) -> None:
        """Become the run's one writer, under a new name, and learn what is held.

        What a writer before had under way, this one under its old name too, may still arrive. It counts for nothing:
        of each former writer the run's document tells up to which number its documents count.
        """
        self._me = secrets.token_hex(8)
        self._unsure = self._running = None  # windows are made anew, of what is stored
        self._indices.ensure(templates.runs_index(self._name), templates.RUN_PROPERTIES)
        self._take_over()
        mark = int(self._run["number"])
        self._held = SourceRanges(SourceRange(*fields) for fields in self._run["held"])
        self._number = mark
        seen: dict[str, int] = {}
        since = [{"range": {"number": {"gt": mark}}}]
        for source in self._ranges(since, ["number", "writer", "first_s", "last_s", "sources"]):
            self._number = seen[source["writer"]] = max(self._number, source["number"])
            self._held.add(documents.ranges_of(source))
            if source["first_s"] is not None:
                self._unseen.append((source["first_s"], source["last_s"]))
        former = {
            writer: seen.get(writer, mark) if until is None else until
            for writer, until in self._run["former"].items()
        }  # fmt: skip
        self._save(former=former)

    def _take_over(self) -> None:
        index = templates.panes_index(_now_s(), self._name)  # only a name; it stays the run's
        fresh = {
            "run": self._run_id, "writer": self._me, "former": {}, "panes_index": index,
            "number": 0, "held": [], "notes": {},
        }  # fmt: skip
        for _ in range(20):
            known = self._read_run()
            body = fresh
            if known:
                former = {**self._run["former"], self._run["writer"]: None}
                body = {**self._run, "writer": self._me, "former": former}
            try:
                params = self._place if known else {"op_type": "create"}
                answer = self._client.request("PUT", self._run_path, body, params=params)
            except Refused as refused:
                if refused.status == 409:
                    continue
                raise
            self._run = body
            self._place = {"if_seq_no": answer["_seq_no"], "if_primary_term": answer["_primary_term"]}
            return
        raise StoreError(f"{self._client.where}: too many processes want to write run {self._run_id}")

    def _alone(self) -> None:
        found = self._client.request("GET", self._run_path, params={"_source_includes": "writer"}, absent=True)
        if found is None or found["_source"]["writer"] != self._me:
            raise StoreError(f"{self._client.where}: another process is writing run {self._run_id}")

    def _save(self, **changes: Any) -> None:
        body = {**self._run, **changes}
        try:
            answer = self._client.request("PUT", self._run_path, body, params=self._place)
        except Refused as refused:
            if refused.status != 409:
                raise
            self._alone()  # raises, unless it was an earlier save of ours whose answer was lost
            self._read_run()
            answer = self._client.request("PUT", self._run_path, body, params=self._place)
        self._run = body
        self._place = {"if_seq_no": answer["_seq_no"], "if_primary_term": answer["_primary_term"]}
