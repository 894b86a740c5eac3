import hashlib
import hmac
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefire_shadow import BadMarker, Settings, sign, verify
from livefire_shadow.marker import MAX_LENGTH, verify_headers

KEY = bytes(range(32))
KEYS = {"k1": KEY, "A-b_c.9": KEY}
NOW = 1_799_999_000
RUN_IDS = st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z")
KEY_IDS = st.from_regex(r"\A[A-Za-z0-9._-]{1,32}\Z")


def reason(value: str, now: float = NOW) -> str:
    try:
        verify(value, KEYS, now)
    except BadMarker as bad:
        return bad.reason
    return "valid"


@given(RUN_IDS, st.integers(1, 3600), KEY_IDS, st.binary(min_size=16, max_size=64))
def test_what_was_signed_verifies(run: str, ahead: int, key_id: str, key: bytes) -> None:
    value = sign(run, NOW + ahead, key_id, key)
    assert len(value) <= MAX_LENGTH
    marker = verify(value, {key_id: key}, NOW)
    assert (marker.run_id, marker.expires_s, marker.key_id) == (run, NOW + ahead, key_id)


def test_any_flipped_bit_fails() -> None:
    # Both key ids differ in one bit from nothing that is known, so a flip there is an unknown key.
    raw = sign("01JD-run", NOW + 60, "k1", KEY).encode()
    for index in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[index] ^= 1 << bit
            assert reason(flipped.decode("latin-1")) != "valid", (index, bit)


@given(st.text(max_size=250))
def test_any_text_is_refused_with_a_reason(text: str) -> None:
    assert reason(text) in ("malformed", "version")


@given(st.integers(0, 90), st.integers(0, 90))
def test_a_cut_or_extended_marker_fails(start: int, end: int) -> None:
    value = sign("r", NOW + 60, "k1", KEY)
    if value[start:end] != value:
        assert reason(value[start:end]) != "valid"
    assert reason(value + "\n") == "malformed"
    assert reason(" " + value) == "malformed"


def test_another_key_with_the_same_id_fails() -> None:
    assert reason(sign("r", NOW + 60, "k1", b"x" * 32)) == "signature"


def test_header_twice_or_empty_is_malformed_and_none_is_production() -> None:
    value = sign("r", NOW + 60, "k1", KEY)
    assert verify_headers([], KEYS, NOW) is None
    for values in ([value, value], [""], [value, ""]):
        with pytest.raises(BadMarker) as bad:
            verify_headers(values, KEYS, NOW)
        assert bad.value.reason == "malformed"


@pytest.mark.parametrize(
    ("run", "expires", "key_id", "key"),
    [("", 1, "k", KEY), ("a;b", 1, "k", KEY), ("a" * 65, 1, "k", KEY), ("a", 0, "k", KEY), ("a", 1, "k k", KEY),
     ("a", 1, "k", b"short"), ("a\n", 1, "k", KEY)],
)  # fmt: skip
def test_sign_refuses_what_verify_would_not_read(run: str, expires: int, key_id: str, key: bytes) -> None:
    with pytest.raises(ValueError):
        sign(run, expires, key_id, key)


def vectors() -> list[tuple[str, int, str]]:
    text = (Path(__file__).parents[1] / "docs/marker.md").read_text()
    rows = re.findall(r"^\| `(v\d;[^`]*)` \| (\d+) \| (\w+) \|$", text, re.MULTILINE)
    return [(value, int(now), result) for value, now, result in rows]


def test_the_documents_vectors_are_all_read() -> None:
    assert len(vectors()) == 10
    assert {result for *_, result in vectors()} == {
        "valid", "expired", "too_far", "signature", "unknown_key", "version", "malformed"
    }  # fmt: skip


@pytest.mark.parametrize(("value", "now", "result"), vectors())
def test_document_vector(value: str, now: int, result: str) -> None:
    assert reason(value, now) == result
    if result in ("valid", "expired", "too_far"):
        # Recomputed without our code: what another language would do.
        signed, _, signature = value.partition(";sig=")
        assert hmac.new(KEY, signed.encode(), hashlib.sha256).hexdigest()[:32] == signature


def test_settings_read_keys_and_are_empty_without() -> None:
    assert Settings.from_env("s", {}).keys == {}
    settings = Settings.from_env("s", {"LIVEFIRE_SHADOW_KEYS": f"k1:{KEY.hex()}, k2:{(b'y' * 16).hex()}"})
    assert settings.keys == {"k1": KEY, "k2": b"y" * 16}
    assert KEY.hex() not in repr(settings) and repr(KEY) not in repr(settings)


@pytest.mark.parametrize("text", ["k1", "k1:zz", "k1:00", ":" + "00" * 16, f"a:{'00' * 16},a:{'11' * 16}", ","])
def test_settings_refuse_half_a_key_and_do_not_print_it(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Settings.from_env("s", {"LIVEFIRE_SHADOW_KEYS": text})
    assert "11" * 8 not in str(error.value)
