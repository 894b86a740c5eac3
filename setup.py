"""Where LIVEFIRE_NATIVE=1 asks for it, what reads packets and masks is compiled by mypyc: the same sources, faster.

All else about the package stands in pyproject.toml. `make native` compiles in place, beside the sources; who builds a
wheel with LIVEFIRE_NATIVE=1 has them in it. A module that is named here must not hold records (`msgspec.Struct` with
`field`), nor ask whether two tuples are the same object: compiled, a tuple has no identity.
"""

import os

from setuptools import Extension, setup

COMPILED = {
    "capture": (
        "alike assembler chunks connection ends exchange flows frames http1 inflight known landmarks lane ledgers "
        "losses message other pair ready reassemble run session side source_pcap source_ring"
    ),
    "mask": "bodies heads jsonbodies masker values",
    "wire": "content head ids",
}


def compiled() -> list[Extension]:
    if os.environ.get("LIVEFIRE_NATIVE") != "1":
        return []
    from mypyc.build import mypycify

    paths = [f"{room}/{name}.py" for room, names in COMPILED.items() for name in names.split()]
    return mypycify(paths, opt_level="3", group_name="livefire")


setup(ext_modules=compiled())
