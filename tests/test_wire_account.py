"""Accounts: increments add up to the whole whenever they are taken, and an imbalance is seen."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from wire import codec
from wire.account import Account, Increment
from wire.codec import RecordType

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["see", "emit", "drop", "skip", "gauge", "note", "take", "fail"]),
        st.sampled_from(["packets", "messages"]),
        st.sampled_from(["late", "gap"]),
        st.integers(0, 5),
    ),
    max_size=40,
)


def count(account: Account, what: str, name: str, reason: str, number: int) -> None:
    ledger = account.ledger(name)
    if what == "see":
        ledger.seen += number
    elif what == "emit":
        ledger.emitted += number
    elif what == "drop":
        ledger.drop(reason, number)
    elif what == "skip":
        ledger.drop(reason, number, intentional=True)
    elif what == "gauge":
        ledger.in_flight = number
    elif what == "note":
        account.note(reason, number)


def same(one: Account, other: Account) -> bool:
    """Equal, but for reasons that were counted zero times."""

    def plain(account: Account) -> object:
        ledgers = {}
        for name, ledger in account.ledgers.items():
            sides = [{k: v for k, v in side.items() if v} for side in (ledger.drops, ledger.intentional)]
            if any((ledger.seen, ledger.emitted, ledger.in_flight, *sides)):
                ledgers[name] = (ledger.seen, ledger.emitted, ledger.in_flight, *sides)
        return ledgers, {k: v for k, v in account.notes.items() if v}

    return plain(one) == plain(other)


@settings(max_examples=50)
@given(STEPS)
def test_increments_sum_to_the_whole_under_any_interleaving(steps: list[tuple[str, str, str, int]]) -> None:
    account = Account()
    written: list[Increment] = []
    for what, name, reason, number in steps:
        if what == "take":
            written.append(account.take())
        elif what == "fail":  # the batch could not be written: what was taken goes with the next one
            account.put_back(account.take())
        else:
            count(account, what, name, reason, number)
    written.append(account.take())
    travelled = [
        codec.decode_header(codec.encode((), RecordType.ACCOUNT, increment=increment)).increment
        for increment in written
    ]
    assert same(Account.total(travelled), account)
    assert same(Account.total([account.take()]), Account()) or any(x.in_flight for x in account.ledgers.values())


@settings(max_examples=50)
@given(STEPS)
def test_an_increment_that_is_lost_is_missed(steps: list[tuple[str, str, str, int]]) -> None:
    account = Account()
    account.ledger("packets").seen += 1
    lost = account.take()
    assert lost.ledgers["packets"].seen == 1
    for what, name, reason, number in steps:
        count(account, what, name, reason, number)
    assert not same(Account.total([account.take()]), account)
    account.put_back(account.take())


@settings(max_examples=50)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_ledger_balances_only_when_everything_seen_is_somewhere(
    emitted: int, late: int, asked: int, waiting: int
) -> None:
    account = Account()
    ledger = account.ledger("messages")
    ledger.seen = emitted + late + asked + waiting
    ledger.emitted, ledger.in_flight = emitted, waiting
    ledger.drop("late", late)
    ledger.drop("other_server", asked, intentional=True)
    assert account.balanced and ledger.difference == 0
    for field, sign in (("seen", 1), ("emitted", -1), ("in_flight", -1)):
        broken = copy.deepcopy(account)
        setattr(broken.ledger("messages"), field, getattr(ledger, field) + 1)
        assert not broken.balanced and broken.ledger("messages").difference == sign
        assert broken.as_json()["balanced"] is False
    broken = copy.deepcopy(account)
    broken.ledger("messages").drop("late")
    assert broken.ledger("messages").difference == -1


def test_parts_that_go_on_side_by_side_are_merged_with_their_gauges() -> None:
    parts = []
    for waiting in (2, 3):
        part = Account()
        ledger = part.ledger("messages")
        ledger.seen, ledger.in_flight = 10, waiting
        ledger.emitted = 9 - waiting
        ledger.drop("late")
        part.note("gap_bytes", 4)
        parts.append(part)
    whole = Account()
    for part in parts:
        whole.merge(part)
    ledger = whole.ledger("messages")
    assert (ledger.seen, ledger.in_flight, ledger.drops, whole.notes) == (20, 5, {"late": 2}, {"gap_bytes": 8})
    assert whole.balanced
    # Negative control: as increments of one writer the second gauge would replace the first.
    assert not Account.total([part.take() for part in parts]).balanced


def test_json_names_what_does_not_add_up() -> None:
    account = Account()
    account.ledger("packets").seen = 5
    account.ledger("packets").drop("kernel", 2)
    assert account.as_json() == {
        "balanced": False,
        "ledgers": {
            "packets": {
                "seen": 5, "emitted": 0, "in_flight": 0, "drops": {"kernel": 2}, "intentional": {}, "difference": 3,
            }
        },
        "notes": {},
    }  # fmt: skip
