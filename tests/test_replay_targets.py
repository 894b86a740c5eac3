import pytest

from replay.targets import Target, admit
from wire.config import ConfigError


def to(*addresses: str):  # type: ignore[no-untyped-def]
    return lambda host, port: list(addresses)


def refused(url: str, *addresses: str, **more: object) -> str:
    with pytest.raises(ConfigError) as error:
        admit(url, resolver=to(*(addresses or ("10.0.0.1",))), **more)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_target_is_pinned_to_one_address() -> None:
    target = admit("http://Staging:8080", resolver=to("10.0.0.1", "10.0.0.2"))
    assert target == Target("staging", 8080, "10.0.0.1")
    assert target.authority == "staging:8080"
    assert admit("http://[::1]", resolver=to("::1")).authority == "[::1]"


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.1.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "0.1.2.3", "::",
        "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16",
        "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:0:a9fe:a9fe", "::169.254.169.254",
    ],
)  # fmt: skip
def test_addresses_that_are_never_fired_at(address: str) -> None:
    assert "refused" in refused("http://metadata.example", address)
    # One bad address among good ones is enough: a name that points there is not trusted.
    assert "refused" in refused("http://metadata.example", "10.0.0.1", address)
    assert "refused" in refused("http://metadata.example", pinned=address)
    # Naming it does not help.
    refused("http://metadata.example", address, named_sources=(address,), allowed=(address,))


@pytest.mark.parametrize("spelled", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376"])
def test_other_spellings_of_metadata_addresses(spelled: str) -> None:
    with pytest.raises(ConfigError):
        admit(f"http://{spelled}/")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://staging", "https"), ("ftp://staging", "http://host:port"), ("http://", "no host"),
        ("http://u:p@staging", "does not belong"), ("http://staging/path", "paths come"), ("http://staging:99999", ""),
        ("http://staging:0", "port 0"),
    ],
)  # fmt: skip
def test_urls_that_are_no_target(url: str, says: str) -> None:
    text = refused(url)
    assert says in text
    assert ":p@" not in text


def test_capture_sources_are_refused_unless_named() -> None:
    for source in ("10.0.0.1:80", "10.0.0.1", "10.0.0.0/8", "shop"):
        assert "captured" in refused("http://shop", refused_sources=(source,))
        for named in ("10.0.0.1:80", "shop:80", "10.0.0.1", "http://shop:80"):
            assert admit("http://shop", refused_sources=(source,), named_sources=(named,), resolver=to("10.0.0.1"))
    assert "captured" in refused("http://shop", refused_sources=("10.0.0.1:80",), named_sources=("10.0.0.1:81",))
    assert admit("http://shop:81", refused_sources=("10.0.0.1:80",), resolver=to("10.0.0.1"))
    assert "captured" in refused("http://[::1]:80", "::ffff:10.0.0.1", refused_sources=("10.0.0.1:80",))


def test_an_allow_list_is_kept() -> None:
    for entry in ("staging", "staging:8080", "10.0.0.0/24", "10.0.0.1", "10.0.0.1:8080"):
        assert admit("http://staging:8080", allowed=(entry,), resolver=to("10.0.0.1"))
    for entry in ("production", "staging:80", "10.1.0.0/24", "10.0.0.2"):
        assert "allow-list" in refused("http://staging:8080", allowed=(entry,))
