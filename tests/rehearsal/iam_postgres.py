"""A stand-in for PostgreSQL on RDS with IAM authentication: a real one, behind the proxy that a rehearsal has, too."""

from __future__ import annotations

import asyncio
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs

import trustme

from rehearsal import iam_postgres
from rehearsal.iam_postgres import Signer

from .test_image_entrypoint import KEYS, Postgres, free_port

REGION = "us-east-1"


class RdsPostgres(Postgres):
    """`start` and `stop` as of any PostgreSQL; the proxy runs in a thread of its own until `close`."""

    def __init__(self, folder: Path) -> None:
        self.roles: dict[tuple[str, str], Signer] = {}
        """By the id of its access key, and its session."""
        self.not_before = datetime.min.replace(tzinfo=UTC)
        """Tokens that were signed earlier count as expired."""
        self.taken: list[str] = []
        """Every token that was taken."""

        super().__init__(folder)
        with self.connect() as connection:
            connection.execute("CREATE ROLE rds_iam NOLOGIN")
        self.proxy_port = free_port()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer = trustme.CA()
        issuer.issue_cert("127.0.0.1").configure_cert(context)
        self.authority = folder / "authority.pem"
        issuer.cert_pem.write_to_path(str(self.authority))
        self.proxy = iam_postgres.Proxy(
            self.data, self.port, superuser="postgres", tls=context, check=self._problem
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        listening = self.proxy.listen(self.proxy_port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(30)

    def start(self) -> None:
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(rules)
        options = f"-p {self.port} -h 127.0.0.1 -k '{self.data}' -c unix_socket_permissions=0700 -c fsync=off"
        self.command("pg_ctl", "start", "--wait", "--log", str(self.data / "log"), "--options", options)

    def close(self) -> None:
        """End the proxy and everything that it passes on."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        self.stop()

    def variables(self, name: str) -> dict[str, str]:
        """Those that both kinds of release have: who signs in is the test's to say."""
        return {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.proxy_port),
            "DATABASE_NAME": name,
            "DATABASE_SSLMODE": "verify-full",
            "DATABASE_SSLROOTCERT": str(self.authority),
            **KEYS,
        }

    def problem(self, token: str, user: str, **changed: str) -> str:
        """What is wrong with a token, were it given to a server with another address or region."""
        own = {"address": f"127.0.0.1:{self.proxy_port}", "region": REGION}
        return iam_postgres.problem(
            token, user=user, signer=lambda *key: self.roles.get(key), **{**own, **changed}
        )

    def _problem(self, token: str, user: str) -> str:
        found = self.problem(token, user)
        [signed] = parse_qs(token).get("X-Amz-Date", ["19700101T000000Z"])
        if not found and datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) < self.not_before:
            found = "it has expired"
        if not found:
            self.taken.append(token)
        return found
