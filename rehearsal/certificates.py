"""Certificates of a rehearsed account: issued on the spot for whatever name a client asks for, by an authority of its own.

ACM's certificate is known by its ARN only, which does not say for which names it is. What asks a rehearsed HTTPS
listener trusts the file `authority`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from rehearsal.ports import LOOPBACK

AUTHORITY = "authority.pem"


class Certificates:
    """An authority that is made once and kept in `directory`, readable by its owner alone."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / AUTHORITY
        key = directory / "authority.key"
        if key.exists() and self.authority.exists():
            self._issuer = trustme.CA.from_pem(self.authority.read_bytes(), key.read_bytes())
        else:
            directory.mkdir(parents=True, exist_ok=True)
            self._issuer = trustme.CA()
            key.touch(0o600)
            self._issuer.private_key_pem.write_to_path(str(key))
            self._issuer.cert_pem.write_to_path(str(self.authority))
        self._contexts: dict[str, ssl.SSLContext] = {}

    def issue(self, name: str) -> trustme.LeafCert:
        """A certificate for that name, with its key."""
        return self._issuer.issue_cert(name)

    def for_server(self) -> ssl.SSLContext:
        """A context that answers with a certificate for the name in the client's greeting, else for loopback."""
        context = self._context(LOOPBACK)
        context.sni_callback = self._choose
        return context

    def for_client(self) -> ssl.SSLContext:
        """A context that trusts this authority, besides the world's."""
        context = ssl.create_default_context()
        context.load_verify_locations(self.authority)
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if name:
            connection.context = self._context(name)

    def _context(self, name: str) -> ssl.SSLContext:
        if name not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            self.issue(name).configure_cert(context)
            self._contexts[name] = context
        return self._contexts[name]
