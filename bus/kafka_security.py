"""The papers of a connection to Kafka: TLS and a password, from the settings to the driver's options."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, Final

from bus.address import KafkaSecurity
from bus.ports import BusError

_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def security_options(security: KafkaSecurity) -> dict[str, Any]:
    """The driver's options. Raises BusError for what cannot be read or does not fit together."""
    for path in (security.ca, security.cert, security.key, security.password_file):
        if path and not Path(path).expanduser().is_file():
            raise BusError(f"kafka_security: there is no file {path}")
    tls = security.tls or bool(security.ca or security.cert)
    options: dict[str, Any] = {}
    if tls:
        _check_papers(security)
        for name, path in (("cafile", security.ca), ("certfile", security.cert), ("keyfile", security.key)):
            if path:
                options[f"ssl_{name}"] = str(Path(path).expanduser())
    if not security.mechanism:
        if security.user:
            raise BusError(f"kafka_security: a user, and no mechanism: one of {', '.join(_MECHANISMS)}")
        return {**options, "security_protocol": "SSL" if tls else "PLAINTEXT"}
    if security.mechanism not in _MECHANISMS:
        raise BusError(f"kafka_security: mechanism is {security.mechanism!r}, not one of {', '.join(_MECHANISMS)}")
    password = security.password
    if security.password_file:
        try:
            password = Path(security.password_file).expanduser().read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BusError(f"kafka_security: {security.password_file}: {_why(error)}") from None
    if not security.user or not password:
        raise BusError(f"kafka_security: {security.mechanism} needs user, and password_file or password")
    return {
        **options,
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": security.mechanism,
        "sasl_plain_username": security.user,
        "sasl_plain_password": password,
    }


def _check_papers(security: KafkaSecurity) -> None:
    """The driver says of a file that it cannot use what it says of brokers that are away, and tries for ever."""
    path = security.ca
    try:
        context = ssl.create_default_context(cafile=str(Path(path).expanduser()) if path else None)
        if path := security.cert:
            key = str(Path(security.key).expanduser()) if security.key else None
            context.load_cert_chain(str(Path(path).expanduser()), key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        path = " and ".join(filter(None, (path, security.key if path == security.cert else "")))
        raise BusError(f"kafka_security: {path}: {_why(error)} (PEM is expected)") from None


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot be used: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, OSError):
        return f"cannot be read: {os.strerror(error.errno or 0).lower()}"
    return "is no text in UTF-8"
