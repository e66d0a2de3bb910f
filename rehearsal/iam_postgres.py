"""What RDS with IAM authentication has in front of PostgreSQL: TLS, and tokens in place of passwords.

The wheel's PostgreSQL has neither PAM nor TLS. So who signs in by IAM is sent to a proxy that speaks TLS alone, as
`rds.force_ssl` wants. Who is no member of `rds_iam` is passed on and signs in with a password. A member is asked for a
token, which is checked for real: its signature, written down from AWS's specification and not with botocore, its host, port,
region, user, age, and whether the role that signed it may be that user. Then the proxy signs in for it, over a socket that
only the server's own account can reach.

In a rehearsal it is a process beside each server (`rehearsal/token_proxy.py`). It knows no keys: the accounts' server does
(`rehearsal/rds_tokens.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import ssl
import struct
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg

from rehearsal.ports import LOOPBACK

SSL_REQUEST, CANCEL_REQUEST, VERSION_3 = 80877103, 80877102, 196608
SECONDS = 900
"""How long RDS takes a token for."""
CHECK = "/rehearsal/database-token"
"""Where the accounts' server tells whether a token is good."""
CHECK_SECONDS = 30
TOLD = "tokens.json"
"""The file of what a proxy has to know, in the folder of its server."""

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


@dataclass(frozen=True)
class Signer:
    """Who holds an access key."""

    secret_key: str
    may_connect: Callable[[str], bool]
    """Whether it may `rds-db:connect` as that database user."""


def problem(
    token: str,
    *,
    user: str,
    address: str,
    region: str,
    signer: Callable[[str, str], Signer | None],
) -> str:
    """Why a token does not let in that user at that address (host:port); empty if it does.

    `signer` is asked by the access key's id and the session that it belongs to.
    """
    url = urlsplit(f"https://{token}")
    given = dict(parse_qsl(url.query, keep_blank_values=True))
    signature = given.pop("X-Amz-Signature", "")
    try:
        key_id, day, where, service, _ = scope = given["X-Amz-Credential"].split("/")
        signed = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return "it is no token"
    known = signer(key_id, given.get("X-Amz-Security-Token", ""))
    if known is None:
        return "nobody has the key that signed it"
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
    key = f"AWS4{known.secret_key}".encode()
    for part in (day, where, service, "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    age = (datetime.now(UTC) - signed).total_seconds()
    for wrong, reason in (
        (not hmac.compare_digest(key.hex(), signature), "its signature is wrong"),
        ((url.netloc, url.path) != (address, "/"), "it is for another host or port"),
        (where != region, "it is for another region"),
        ((service, given.get("Action"), given.get("DBUser")) != ("rds-db", "connect", user), "it is for another user"),
        (given.get("X-Amz-Expires") != str(SECONDS) or age > SECONDS, "it has expired"),
        (not known.may_connect(user), "who signed it may not rds-db:connect as that user to this database"),
    ):  # fmt: skip
        if wrong:
            return reason
    return ""


class Proxy:
    """TLS and tokens for the PostgreSQL that has its socket in `folder` and listens on `port` of loopback."""

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        superuser: str,
        tls: ssl.SSLContext,
        check: Callable[[str, str], str],
    ) -> None:
        self._folder, self._port, self._superuser, self._tls = folder, port, superuser, tls
        self._check = check
        """Why a token does not let in a user; empty if it does."""
        self.administering_counts = False
        """Whether who merely administers a member of `rds_iam` is one, as PostgreSQL's own `pg_hba.conf` has it."""
        self.asked: list[str] = []
        """Who said by TLS which user it is."""

    async def listen(self, port: int) -> asyncio.Server:
        """Take connections on that port of loopback."""
        return await asyncio.start_server(self._meet, LOOPBACK, port)

    def _needs_token(self, user: str) -> bool:
        with psycopg.connect(
            host=str(self._folder), port=self._port, user=self._superuser, dbname="postgres"
        ) as connection:
            values = {"user": user, "administering": self.administering_counts}
            found = connection.execute(MEMBERS, values).fetchone()
        return bool(found and found[0])

    async def _meet(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        others: list[asyncio.StreamWriter] = [back]
        try:
            await self._serve(client, back, others)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError, psycopg.Error) as error:
            print(f"a connection ended: {error!r}", flush=True)
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
            await back.start_tls(self._tls)
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
                if why := await asyncio.to_thread(self._check, token, user):
                    print(f"a token does not let in {user}: {why}", flush=True)
                    _refuse(back, f'PAM authentication failed for user "{user}"')
                    return
        server, there = await (
            asyncio.open_unix_connection(f"{self._folder}/.s.PGSQL.{self._port}")
            if by_socket
            else asyncio.open_connection(LOOPBACK, self._port)
        )
        others.append(there)
        there.write(greeting)
        ways = [asyncio.create_task(_pass(client, there)), asyncio.create_task(_pass(server, back))]
        _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in left:
            way.cancel()


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


@dataclass(frozen=True)
class Beside:
    """What a server's proxy has to know. It is kept in the server's folder."""

    port: int
    """Where it listens, which is part of each token."""
    database: str
    """The ARN that `rds-db:connect` names, without the user."""
    region: str
    endpoint: str
    """Where the rehearsed AWS answers."""
    socket: str
    """The folder of the server's socket."""
    superuser: str
    certificate: str
    key: str

    def save(self, directory: Path) -> None:
        """Put it into the folder of the server."""
        (directory / TOLD).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def beside(directory: Path) -> Beside | None:
    """What is in front of the server that was made in a folder, if it takes tokens."""
    file = directory / TOLD
    return Beside(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def main() -> None:
    """Serve in front of one rehearsed server until stopped."""
    parser = argparse.ArgumentParser(prog="rehearsal.iam_postgres", description=main.__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="the server's folder")
    directory = parser.parse_args().directory
    told = beside(directory)
    assert told

    def check(token: str, user: str) -> str:
        asked = {
            "token": token,
            "user": user,
            "database": told.database,
            "region": told.region,
            "address": f"{LOOPBACK}:{told.port}",
        }
        request = urllib.request.Request(f"{told.endpoint}{CHECK}", json.dumps(asked).encode())  # noqa: S310 (this machine's)
        with urllib.request.urlopen(request, timeout=CHECK_SECONDS) as answer:  # noqa: S310
            return str(json.load(answer)["problem"])

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(told.certificate, told.key)
    port = int((directory / "port").read_text(encoding="utf-8"))
    proxy = Proxy(Path(told.socket), port, superuser=told.superuser, tls=tls, check=check)

    async def serve() -> None:
        async with await proxy.listen(told.port) as listening:
            await listening.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
