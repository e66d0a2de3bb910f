"""Host names of rehearsed environments: where each leads, and whom to trust there.

On AWS that is a DNS record, and a certificate that everybody trusts. Here the load balancer has another port, and a
certificate of the rehearsal's own authority. A build is told both, by what its Python reads when it starts.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import certifi

from rehearsal.accounts import account_directory
from rehearsal.certificates import AUTHORITY
from rehearsal.cloudformation import Stack
from rehearsal.ports import LOOPBACK

RESOLVER = Path(__file__).with_name("resolver")


@dataclass(frozen=True)
class Named:
    """An environment with a name of its own: the loopback port that stands in for 443, and the file of its authority."""

    host: str
    port: int
    authority: Path

    @property
    def ask(self) -> str:
        """A command that asks it from this machine."""
        connect = f"--connect-to {self.host}:443:{LOOPBACK}:{self.port}"
        return f"curl {connect} --cacert {shlex.quote(str(self.authority))} https://{self.host}/health"


def named(stack: Stack, state: Path) -> Named | None:
    """The name under which a stack's load balancer is reached; None where it is its own, or where there is none."""
    url = urlsplit(stack.outputs.get("Url", ""))
    balancers = [r for r in stack.resources.values() if r.type == "AWS::ElasticLoadBalancingV2::LoadBalancer"]
    if not balancers or url.scheme != "https" or url.hostname is None:
        return None
    _, _, port = str(balancers[0].physical.attributes["DNSName"]).partition(":")
    host = account_directory(state, stack.account, stack.region) / "host"
    return Named(url.hostname, int(port), (host / "certificates" / AUTHORITY).resolve())


def variables(names: Iterable[Named]) -> dict[str, str]:
    """What lets a build's programs reach those names and trust them, besides whom they trust anyhow."""
    names = list(names)
    if not names:
        return {}
    world = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()
    trusted = names[0].authority.with_name("trusted.pem")
    files = [Path(world), *(name.authority for name in names)]
    trusted.write_text("\n".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    return {
        "PYTHONPATH": str(RESOLVER),
        "REHEARSED_NAMES": json.dumps({name.host: name.port for name in names}),
        "REQUESTS_CA_BUNDLE": str(trusted),
        "SSL_CERT_FILE": str(trusted),
    }
