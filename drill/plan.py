"""The plan: what a drill is asked to do, as people write it (YAML) and as the program uses it.

`${name}` and `${name:-default}` are replaced before the text is read; values come from `--set name=value`. A file
that the plan names is looked for beside the plan, then in the working folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from drill.thresholds import Source, Threshold, parse_threshold
from wire import config
from wire.config import ConfigError
from wire.locate import locate

T = TypeVar("T")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)(?::-([^}\n]*))?\}")
#: In URLs: what stands between the user's name and the host, and parameters that are named like secrets.
_PASSWORD: Final = re.compile(
    r"""(?P<before>://[^\s:/@'"]*:)[^\s'"]*(?=@)|(?P<name>[?&;][^\s=&'"]*(?:pass|pwd|secret|token|key)[^\s=&'"]*=)[^\s&;'"]+""",
    re.IGNORECASE,
)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class StepText(_File, frozen=True, forbid_unknown_fields=True):
    load: str | float  # 2x, 2.5x: a multiple of production's rate
    for_: str = msgspec.field(name="for")


class CapsText(_File, frozen=True, forbid_unknown_fields=True):
    rate: str  # 2000/s
    open: int


class StoreText(_File, frozen=True, forbid_unknown_fields=True):
    production: str  # SQLAlchemy URLs; a user that may only read is enough
    shadow: str
    run_column: dict[str, str]  # table: its column that holds the run


class IsolationText(_File, frozen=True, forbid_unknown_fields=True):
    services: dict[str, str] = {}  # name: base URL; each answers GET /.livefire/audit
    stores: dict[str, StoreText] = {}


class ThirdPartyText(_File, frozen=True, forbid_unknown_fields=True):
    recorded: str  # host:port
    mock: str


class ProductionText(_File, frozen=True, forbid_unknown_fields=True):
    recording: str  # the live recording, which goes on during the drill
    servers: list[str] = []  # "ip:port" or ":port" of the entry; none = all of it


class PlanText(_File, frozen=True, forbid_unknown_fields=True):
    """The file, field by field."""

    recording: str
    target: str
    steps: list[StepText]
    name: str = ""
    thresholds: list[str] = []
    caps: CapsText | None = None
    accounts: str | None = None
    spread: str = "2s"  # each copy of a session is shifted by up to this
    ramp: str | None = None  # how long a step may take to reach its load; none = as long as sessions last
    speed: float = 1.0  # how much faster than it was recorded
    timeout: str = "10s"  # of one request
    workers: int = 1
    production: ProductionText | None = None
    isolation: IsolationText | None = None
    third_parties: dict[str, ThirdPartyText] = {}


class Step(msgspec.Struct, frozen=True):
    load: float
    for_ns: int


class Caps(msgspec.Struct, frozen=True):
    """Hard limits of all workers together."""

    rate: float = 5_000.0  # shots a second
    open_shots: int = 2_000


class StorePair(msgspec.Struct, frozen=True):
    name: str
    production: str
    shadow: str
    run_column: dict[str, str]


class Isolation(msgspec.Struct, frozen=True):
    services: dict[str, str]
    stores: tuple[StorePair, ...]


class ThirdParty(msgspec.Struct, frozen=True):
    name: str
    recorded: str
    mock: str


class Production(msgspec.Struct, frozen=True):
    recording: Path
    servers: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """What is to be done: durations in ns, loads as multiples of production, paths resolved."""

    name: str
    source: str
    recording: Path
    target: str
    steps: tuple[Step, ...]
    thresholds: tuple[Threshold, ...]
    caps: Caps
    accounts: Path | None
    spread_ns: int
    ramp_ns: int | None  # None: as long as sessions last
    speed: float
    timeout_ns: int
    workers: int
    production: Production | None
    isolation: Isolation | None
    third_parties: tuple[ThirdParty, ...]
    text: str  # as read, variables replaced; it may hold passwords: see `shown_text`

    @property
    def shown_text(self) -> str:
        """The text as it may be written down: without the passwords in its URLs."""
        return _PASSWORD.sub(lambda m: f"{m['before'] or m['name']}***", self.text)


def load_plan(path: Path, variables: Mapping[str, str] | None = None, *, on_bus: bool = False) -> Plan:
    """Raises ConfigError: what, where (file, line, column), and what was probably meant.

    `on_bus`: `recording` is the name of one on the bus; so is `production.recording` where no such file exists.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such plan") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse_plan(text, str(path), variables or {}, beside=path.parent, on_bus=on_bus)


def parse_plan(
    text: str, source: str, variables: Mapping[str, str], *, beside: Path = Path(), on_bus: bool = False
) -> Plan:
    """A plan of its text. Raises ConfigError."""
    text = substitute(text, source, variables)
    return _Resolver(text, source, beside, on_bus).plan(config.load(text, PlanText, source))


def substitute(text: str, source: str, variables: Mapping[str, str]) -> str:
    """Replace the variables; comments are left alone. Raises ConfigError for one without a value, and for one that
    was given and stands nowhere."""
    known: set[str] = set()
    lines = []
    for number, line in enumerate(text.split("\n"), 1):

        def value(match: re.Match[str], number: int = number) -> str:
            name, default = match.group(1), match.group(2)
            known.add(name)
            if name in variables:
                if "\n" in variables[name]:
                    raise ConfigError(f"--set {name}: a value is one line")
                return variables[name]
            if default is None:
                raise ConfigError(f"{source}:{number}:{match.start() + 1}: ${{{name}}} has no value: --set {name}=...")
            return default

        lines.append(line if line.lstrip().startswith("#") else _VARIABLE.sub(value, line))
    for name in variables:
        if name not in known:
            raise ConfigError(f"--set {name}: {source} has no ${{{name}}}{config.suggestion(name, sorted(known))}")
    return "\n".join(lines)


class _Resolver:
    def __init__(self, text: str, source: str, beside: Path, on_bus: bool) -> None:
        self._text, self._source, self._beside, self._on_bus = text, source, beside, on_bus

    def _at(self, steps: list[str | int], make: Callable[[], T]) -> T:
        try:
            return make()
        except ConfigError as error:
            raise self._problem(steps, str(error)) from None

    def _problem(self, steps: list[str | int], what: str) -> ConfigError:
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
        data = config.load_yaml(self._text, self._source)
        return ConfigError(locate(f"{what} - at `${path}`", self._text, data, PlanText, self._source))

    def plan(self, file: PlanText) -> Plan:
        if not file.steps:
            raise self._problem(["steps"], "a plan needs at least one step, as in {load: 1x, for: 30s}")
        if not 0 < file.speed <= 1000:
            raise self._problem(["speed"], f"speed is {file.speed}: above 0, at most 1000")
        if not 1 <= file.workers <= 256:
            raise self._problem(["workers"], f"workers is {file.workers}: 1 to 256")
        if file.caps is not None and 0 < file.caps.open < file.workers:
            raise self._problem(["caps", "open"], f"caps.open is {file.caps.open}: at least one for each worker")
        if not file.target.startswith(("http://", "https://")):
            raise self._problem(["target"], f"{file.target!r} is not a URL: did you mean http://{file.target}?")
        thresholds = tuple(
            self._at(["thresholds", i], lambda t=t: parse_threshold(t))  # type: ignore[misc]
            for i, t in enumerate(file.thresholds)
        )
        for i, threshold in enumerate(thresholds):
            if threshold.source is Source.PRODUCTION and file.production is None:
                raise self._problem(
                    ["thresholds", i],
                    f"{threshold.text!r} needs to see production: production: {{recording: live.lf, servers: [...]}}",
                )
        return Plan(
            name=file.name or Path(self._source).stem,
            source=self._source,
            recording=self._recording(file.recording),
            target=file.target,
            steps=tuple(self._step(i, step) for i, step in enumerate(file.steps)),
            thresholds=thresholds,
            caps=self._caps(file.caps),
            accounts=self._path(file.accounts, ["accounts"]) if file.accounts else None,
            spread_ns=self._at(["spread"], lambda: config.duration_ns(file.spread)),
            ramp_ns=None if file.ramp is None else self._at(["ramp"], lambda: config.duration_ns(file.ramp or "")),
            speed=file.speed,
            timeout_ns=self._at(["timeout"], lambda: config.duration_ns(file.timeout)),
            workers=file.workers,
            production=self._production(file.production),
            isolation=self._isolation(file.isolation),
            third_parties=tuple(ThirdParty(name, t.recorded, t.mock) for name, t in file.third_parties.items()),
            text=self._text,
        )

    def _recording(self, text: str) -> Path:
        if not self._on_bus:
            return self._path(text, ["recording"])
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", text) or text.endswith(".lf"):
            raise self._problem(
                ["recording"], f"{text}: a file; over a bus workers fetch a recording by its name there, as in monday"
            )
        return Path(text)

    def _step(self, index: int, step: StepText) -> Step:
        load = self._at(["steps", index, "load"], lambda: _load(step.load))
        return Step(load, self._at(["steps", index, "for"], lambda: _length(step.for_)))

    def _caps(self, caps: CapsText | None) -> Caps:
        if caps is None:
            return Caps()
        if caps.open < 1:
            raise self._problem(["caps", "open"], f"caps.open is {caps.open}: at least 1")
        return Caps(self._at(["caps", "rate"], lambda: config.rate_per_s(caps.rate)), caps.open)

    def _production(self, production: ProductionText | None) -> Production | None:
        if production is None:
            return None
        path = self._path(production.recording, ["production", "recording"], may_come=True)
        return Production(path, tuple(production.servers))

    def _isolation(self, isolation: IsolationText | None) -> Isolation | None:
        if isolation is None:
            return None
        for name, store in isolation.stores.items():
            if not store.run_column:
                raise self._problem(
                    ["isolation", "stores", name, "run_column"], "name at least one table: {orders: run_id}"
                )
            if store.production == store.shadow:
                raise self._problem(["isolation", "stores", name, "shadow"], "production and shadow are the same store")
        if not isolation.services and not isolation.stores:
            raise self._problem(["isolation"], "names no services and no stores: there is nothing to prove it with")
        stores = (StorePair(n, s.production, s.shadow, s.run_column) for n, s in isolation.stores.items())
        services = {name: url.rstrip("/") for name, url in isolation.services.items()}
        return Isolation(services, tuple(stores))

    def _path(self, text: str, steps: list[str | int], *, may_come: bool = False) -> Path:
        path = Path(text).expanduser()
        for candidate in (path,) if path.is_absolute() else (self._beside / path, path):
            if candidate.exists():
                return candidate
        if may_come:
            return path
        raise self._problem(steps, f"{text}: no such file beside the plan or in the working folder")


def _load(given: str | float) -> float:
    text = str(given).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*x?", text)
    if not match or float(match.group(1)) <= 0:
        hint = f": did you mean {text[:-1]}x?" if re.fullmatch(r"[\d.]+[×X*]", text) else ""
        raise ConfigError(f"{text!r} is not a load (as in 1x, 2.5x: a multiple of production's rate){hint}")
    return float(match.group(1))


def _length(text: str) -> int:
    length = config.duration_ns(text)
    if length < 1_000_000_000:
        raise ConfigError(f"a step of {text} is too short to be judged: 1s or more")
    return length
