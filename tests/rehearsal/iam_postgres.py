"""A stand-in for PostgreSQL on RDS with IAM authentication: a real PostgreSQL, and what RDS's PAM does in front of it.

The wheel's PostgreSQL has neither PAM nor TLS. So clients reach a proxy that speaks TLS alone, as `rds.force_ssl` wants.
Who is no member of `rds_iam` is passed on and signs in with a password. A member is asked for a token, which is checked for
real: its signature, written down from AWS's specification and not with botocore, its host, port, user, age, and whether the
role that signed it may be that user. Then the proxy signs in for it, over a socket that only it can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ssl
import struct
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import trustme

from .test_image_entrypoint import KEYS, Postgres, free_port

SSL_REQUEST, CANCEL_REQUEST, VERSION_3 = 80877103, 80877102, 196608
SECONDS = 900
"""How long RDS takes a token for."""

MEMBERS = """
WITH RECURSIVE mine (oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = %(user)s
    UNION
    SELECT roleid FROM pg_auth_members JOIN mine ON member = mine.oid
    WHERE inherit_option OR set_option
    OR (%(administering)s AND roleid NOT IN (SELECT oid FROM pg_roles WHERE rolname = 'rds_iam'))
)
SELECT EXISTS (SELECT FROM mine JOIN pg_roles USING (oid) WHERE rolname = 'rds_iam')
"""


class RdsPostgres(Postgres):
    """`start` and `stop` as of any PostgreSQL; the proxy runs in a thread of its own until `close`."""

    def __init__(self, folder: Path) -> None:
        self.roles: dict[str, tuple[str, str]] = {}
        """By the id of its access key: a role's secret key, and the database user that it may `rds-db:connect` as."""
        self.not_before = datetime.min.replace(tzinfo=UTC)
        """Tokens that were signed earlier count as expired."""
        self.administering_counts = False
        """Whether who merely administers a member of `rds_iam` is one, as PostgreSQL's own `pg_hba.conf` has it."""
        self.asked: list[str] = []
        """Who said by TLS which user it is."""
        self.taken: list[str] = []
        """Every token that was taken."""

        super().__init__(folder)
        with self.connect() as connection:
            connection.execute("CREATE ROLE rds_iam NOLOGIN")
        self.proxy_port = free_port()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer = trustme.CA()
        issuer.issue_cert("127.0.0.1").configure_cert(self._context)
        self.authority = folder / "authority.pem"
        issuer.cert_pem.write_to_path(str(self.authority))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        serving = asyncio.start_server(self._meet, "127.0.0.1", self.proxy_port)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(30)

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

    def problem(self, token: str, user: str) -> str:
        """Why a token does not let in that user; empty if it does."""
        url = urlsplit(f"https://{token}")
        given = dict(parse_qsl(url.query, keep_blank_values=True))
        signature = given.pop("X-Amz-Signature", "")
        try:
            key_id, day, region, service, _ = scope = given["X-Amz-Credential"].split("/")
            signed = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except (KeyError, ValueError):
            return "no token"
        secret, may_be = self.roles.get(key_id, ("", ""))
        query = "&".join(f"{quote(name, '')}={quote(given[name], '')}" for name in sorted(given))
        empty = hashlib.sha256(b"").hexdigest()
        asked = f"GET\n/\n{query}\nhost:{url.netloc}\n\nhost\n{empty}"
        text = "\n".join(
            (
                "AWS4-HMAC-SHA256",
                given["X-Amz-Date"],
                "/".join(scope[1:]),
                hashlib.sha256(asked.encode()).hexdigest(),
            )
        )
        key = f"AWS4{secret}".encode()
        for part in (day, region, service, "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        age = (datetime.now(UTC) - signed).total_seconds()
        for wrong, reason in (
            (not secret or not hmac.compare_digest(key.hex(), signature), "signature"),
            ((url.netloc, url.path) != (f"127.0.0.1:{self.proxy_port}", "/"), "host or port"),
            ((service, given.get("Action"), given.get("DBUser")) != ("rds-db", "connect", user), "user"),
            (given.get("X-Amz-Expires") != str(SECONDS) or age > SECONDS, "expired"),
            (signed < self.not_before, "expired"),
            (may_be != user, "the role may not rds-db:connect"),
        ):
            if wrong:
                return reason
        self.taken.append(token)
        return ""

    def _needs_token(self, user: str) -> bool:
        with self.connect() as connection:
            values = {"user": user, "administering": self.administering_counts}
            found = connection.execute(MEMBERS, values).fetchone()
        return bool(found and found[0])

    async def _meet(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        others: list[asyncio.StreamWriter] = [back]
        try:
            await self._serve(client, back, others)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            for writer in others:
                writer.close()

    async def _serve(
        self, client: asyncio.StreamReader, back: asyncio.StreamWriter, others: list[asyncio.StreamWriter]
    ) -> None:
        code, greeting = await _greeting(client)
        if code == SSL_REQUEST:
            back.write(b"S")
            await back.drain()
            await back.start_tls(self._context)
            code, greeting = await _greeting(client)
        elif code != CANCEL_REQUEST:
            _refuse(back, "no pg_hba.conf entry, no encryption")
            return
        by_socket = False
        if code == VERSION_3:
            words = greeting[8:].split(b"\0")
            user = dict(zip(words[::2], words[1::2], strict=False))[b"user"].decode()
            self.asked.append(user)
            by_socket = await asyncio.to_thread(self._needs_token, user)
            if by_socket:
                back.write(b"R" + struct.pack("!ii", 8, 3))  # AuthenticationCleartextPassword
                (length,) = struct.unpack("!xi", await client.readexactly(5))
                token = (await client.readexactly(length - 4)).rstrip(b"\0").decode()
                if self.problem(token, user):
                    _refuse(back, f'PAM authentication failed for user "{user}"')
                    return
        server, there = await (
            asyncio.open_unix_connection(f"{self.data}/.s.PGSQL.{self.port}")
            if by_socket
            else asyncio.open_connection("127.0.0.1", self.port)
        )
        others.append(there)
        there.write(greeting)
        await asyncio.wait(
            [asyncio.create_task(_pass(client, there)), asyncio.create_task(_pass(server, back))],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def _greeting(client: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first message of a connection, which alone has no letter in front, and its number."""
    length, code = struct.unpack("!ii", start := await client.readexactly(8))
    return code, start + await client.readexactly(length - 8)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while read := await source.read(65536):
            target.write(read)
            await target.drain()


def _refuse(back: asyncio.StreamWriter, why: str) -> None:
    told = b"".join(
        kind + text.encode() + b"\0" for kind, text in ((b"S", "FATAL"), (b"C", "28000"), (b"M", why))
    )
    back.write(b"E" + struct.pack("!i", len(told) + 5) + told + b"\0")
