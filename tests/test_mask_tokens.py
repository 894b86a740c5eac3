"""Tokens: the same for the same value and key, of the value's form and length, and not to be turned back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask import shapes
from mask.tokens import Tokens, is_token

KEY = b"k" * 32
FORMS = {
    "12345678": r"9\d{7}", "1234567890": r"1\d{9}", "9007199254740991": r"8\d{15}", "9223372036854775807": r"8\d{18}",
    "4111 1111 1111 1111": r"8\d{3} \d{4} \d{4} \d{4}", "hunter2hunter2": r"lf[0-9A-Za-z]{12}",
    "k9J2mQ8xL4pR7vT1": r"lfx_[0-9A-Za-z]{12}", "abc": r"lf[0-9A-Za-z]{6}", "12": r"9\d{7}",
    "0f8fad5b-d9cb-469f-a165-70867728950e": r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}",
    "DEADBEEF00112233": r"1F1F[0-9A-F]{12}", "ann.lee@mail.example": r"[0-9A-Za-z]{12}@lf\.test",
    "+49 170 1234567": r"\+99 9\d\d \d{7}",
}  # fmt: skip


@pytest.mark.parametrize(("value", "form"), FORMS.items())
def test_a_token_keeps_the_form(value: str, form: str) -> None:
    import re

    token = Tokens(KEY).token(value)
    assert re.fullmatch(form, token)
    assert token == Tokens(KEY).token(value) != Tokens(b"x" * 32).token(value)
    assert len(token) == max(len(value), 8)


def test_a_card_has_a_right_check_digit_and_one_token_in_any_grouping() -> None:
    token = Tokens(KEY).token("4111 1111 1111 1111")
    assert shapes.is_card(token) and Tokens(KEY).token("4111111111111111") == token.replace(" ", "")


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=40, unique=True))
@settings(max_examples=100, deadline=None)
def test_values_apart_stay_apart_and_lengths_stay(values: list[str]) -> None:
    tokens = Tokens(KEY)
    made = [tokens.token(value) for value in values]
    assert all(len(t) == len(v) for t, v in zip(made, values, strict=True) if len(v) >= 8 and not shapes.EMAIL.match(v))
    long = {t for t, v in zip(made, values, strict=True) if len(v) >= 12}
    assert len(long) == sum(len(v) >= 12 for v in values)
    assert all(t != v for t, v in zip(made, values, strict=True))


def test_nothing_has_no_token_and_a_short_key_is_refused() -> None:
    assert Tokens(KEY).token("") == ""
    with pytest.raises(ValueError, match="16 bytes"):
        Tokens(b"short")


@pytest.mark.parametrize(
    "value", ["k9J2mQ8xL4pR7vT1", "0f8fad5b-d9cb-469f-a165-70867728950e", "deadbeef00112233", "a@b.example"]
)
def test_tokens_can_be_told_by_their_form(value: str) -> None:
    assert is_token(Tokens(KEY).token(value)) and not is_token(value)


@pytest.mark.parametrize(
    "value",
    ["product-details-page2", "2026-11-20T23:25:00.000Z", "iphone12-64gb-black-v2", "internationalization",
     "blue-cotton-shirt-size-42", "com.example.service.OrderService", "ORDER_CREATED_SUCCESSFULLY", "1234567890123456",
     "orders.created.v2.event", "https://shop.test/", "a" * 15],
)  # fmt: skip
def test_what_people_write_is_not_opaque(value: str) -> None:
    assert not shapes.is_opaque(value)


def test_what_machines_draw_is_opaque() -> None:
    import secrets
    import uuid

    kinds = {
        "hex": lambda: secrets.token_hex(16), "urlsafe": lambda: secrets.token_urlsafe(24),
        "long": lambda: secrets.token_urlsafe(32), "uuid": lambda: str(uuid.uuid4()),
    }  # fmt: skip
    for name, draw in kinds.items():
        missed = [value for value in (draw() for _ in range(2000)) if not shapes.is_opaque(value)]
        assert len(missed) <= 12, (name, missed)
