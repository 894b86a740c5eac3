"""A ClickHouse server on loopback, as Debian packages it (18.16)."""

from __future__ import annotations

import shutil
import urllib.request

from servers.process import Command, Missing, Server, free_port

_CONFIG = """<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{http}</http_port>
  <tcp_port>{tcp}</tcp_port>
  <path>{folder}/data/</path>
  <tmp_path>{folder}/tmp/</tmp_path>
  <user_files_path>{folder}/files/</user_files_path>
  <format_schema_path>{folder}/formats/</format_schema_path>
  <users_config>{folder}/users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <timezone>UTC</timezone>
  <mark_cache_size>67108864</mark_cache_size>
  <uncompressed_cache_size>67108864</uncompressed_cache_size>
</yandex>
"""
_USERS = """<yandex>
  <profiles><default><max_memory_usage>1000000000</max_memory_usage></default></profiles>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </default>
  </users>
  <quotas><default></default></quotas>
</yandex>
"""


def binary() -> str:
    """Raises Missing."""
    found = shutil.which("clickhouse-server", path=None) or shutil.which("clickhouse-server", path="/usr/sbin")
    if found is None:
        raise Missing("ClickHouse's server is not installed: make servers")
    return found


class ClickHouse(Server):
    """`address` is "127.0.0.1:port" of the native protocol, `http` the URL of the other one. Raises Missing."""

    name = "clickhouse"

    def __init__(self) -> None:
        self._binary = binary()
        super().__init__()
        self._http, self._tcp = free_port(), free_port()
        self.address = f"127.0.0.1:{self._tcp}"
        self.http = f"http://127.0.0.1:{self._http}"

    def _command(self) -> Command:
        config = self.folder / "config.xml"
        config.write_text(_CONFIG.format(http=self._http, tcp=self._tcp, folder=self.folder))
        (self.folder / "users.xml").write_text(_USERS)
        return Command([self._binary, f"--config-file={config}"], cwd=self.folder)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http}/ping", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False
