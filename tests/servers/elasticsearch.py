"""An Elasticsearch of one node on loopback, without security."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from servers.jars import fetched
from servers.java import java_home
from servers.process import Command, Missing, Server, free_port

_OTHER = "nobody"  # it refuses root


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


class Elasticsearch(Server):
    """`settings`: lines of elasticsearch.yml on top of ours. `address` is its URL. Raises Missing.

    It runs under a launcher, a second Java machine. `pid` and `rss_mb` are the server's, signals reach both.
    """

    name = "elasticsearch"
    wait_s = 120.0

    def __init__(self, settings: Mapping[str, object] | None = None, *, heap: str = "512m") -> None:
        self._java = java_home(21, "Elasticsearch 9", "ES_JAVA_HOME")
        homes = sorted(fetched("elasticsearch").glob("elasticsearch-*/lib/elasticsearch-core-*.jar"))
        if not homes:
            raise Missing("Elasticsearch's folder holds no server: remove it, then make servers")
        super().__init__()
        self._home, self._heap, self._server = homes[0].parent.parent, heap, 0
        self._port, self._transport = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._settings = {
            "cluster.name": "livefire",
            "node.name": "one",
            "discovery.type": "single-node",
            "network.host": "127.0.0.1",
            "http.port": self._port,
            "transport.port": self._transport,
            "xpack.security.enabled": "false",
            "path.data": self.folder / "data",
            "path.logs": self.folder / "logs",
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            "action.destructive_requires_name": "false",
            **(settings or {}),
        }

    def _lay_out(self) -> None:
        """Configuration and data of this one; for another account also the server, as root's home is closed to it."""
        for name in ("data", "logs", "tmp"):
            (self.folder / name).mkdir()
        config = self.folder / "config"
        shutil.copytree(self._home / "config", config)
        options = config / "jvm.options"
        kept = [x for x in options.read_text().splitlines() if "-Xlog:gc*" not in x and "ErrorFile" not in x]
        options.write_text("\n".join(kept) + "\n")  # those write into the server's folder
        (config / "elasticsearch.yml").write_text("".join(f"{k}: {v}\n" for k, v in self._settings.items()))
        if os.geteuid() == 0:
            other = pwd.getpwnam(_OTHER)
            for root, _, files in os.walk(self.folder):
                for path in (Path(root), *(Path(root, name) for name in files)):
                    os.chown(path, other.pw_uid, other.pw_gid)
            self._home = Path(shutil.copytree(self._home, self.folder / "home", copy_function=_link))

    def _command(self) -> Command:
        if not (self.folder / "config").exists():
            self._lay_out()
        java = str(self._java / "bin/java")
        env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOSTNAME": "localhost",
            "JAVA": java,
            "JAVA_TYPE": "ES_JAVA_HOME",
            "ES_JAVA_HOME": str(self._java),
            "ES_HOME": str(self._home),
            "ES_PATH_CONF": str(self.folder / "config"),
            "ES_DISTRIBUTION_TYPE": "zip",
            "ES_TMPDIR": str(self.folder / "tmp"),
            "ES_JAVA_OPTS": f"-Xms{self._heap} -Xmx{self._heap} -XX:TieredStopAtLevel=1",
            "CLI_JAVA_OPTS": "-Xms4m -Xmx64m -XX:+UseSerialGC",
        }
        jars = f"{self._home}/lib/tools/server-launcher/*"
        main = "org.elasticsearch.server.launcher.ServerLauncher"
        argv = [java, *env["CLI_JAVA_OPTS"].split(), "-cp", jars, main]
        return Command(argv, env, self._home, _OTHER if os.geteuid() == 0 else "-")

    def _ready(self) -> bool:
        wanted = "/_nodes/_local?filter_path=nodes.*.process.id"
        try:
            with urllib.request.urlopen(self.address + wanted, timeout=2) as reply:
                self._server = next(iter(json.load(reply)["nodes"].values()))["process"]["id"]
            with urllib.request.urlopen(self.address + "/_cluster/health", timeout=2) as reply:
                return json.load(reply)["status"] in ("green", "yellow")
        except (OSError, ValueError, KeyError, StopIteration):
            return False

    @property
    def pid(self) -> int:
        _ = super().pid
        return self._server
