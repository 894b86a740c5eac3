"""Which names say that a value is secret. The words are those of no application in particular."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_CACHED: Final = 8192

#: A name is secret if one of its words is: `user_pin`, `X-Auth-Key`, `cardNumber`.
WORDS: Final = frozenset({
    "auth", "authorization", "bearer", "card", "cardno", "cc", "cookie", "credential", "credentials", "csc",
    "csrf", "cvc", "cvv", "iban", "jwt", "key", "mfa", "otp", "pan", "pass", "passcode", "passphrase", "passwd",
    "password", "pin", "pwd", "sec", "secret", "secrets", "sess", "session", "sid", "sig", "signature", "ssn",
    "tan", "token", "tokens", "totp", "xsrf",
})  # fmt: skip
#: ... or if one of these stands anywhere in it: `newpassword2`, `PHPSESSID`, `apikey`.
PARTS: Final = re.compile(
    "password|passwd|passphrase|secret|token|apikey|accesskey|privatekey|sessid|sessionid|credential|authorization"
    "|creditcard|cardnumber|socialsecurity|securitycode"
)
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Names:
    """Tells secret names from others; remembers a bounded number of answers."""

    def __init__(self, more: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
        self._more = frozenset(_squeezed(name) for name in more)
        self._keep = frozenset(_squeezed(name) for name in keep)
        self._known: dict[str, bool] = {}

    def secret(self, name: str) -> bool:
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            found = self._known[name] = self._secret(name)
        return found

    def _secret(self, name: str) -> bool:
        squeezed = _squeezed(name)
        if squeezed in self._more:
            return True
        if squeezed in self._keep:
            return False
        if PARTS.search(squeezed):
            return True
        return any(word.lower() in WORDS for word in _WORD.findall(name))


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
