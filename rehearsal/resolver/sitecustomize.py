"""A rehearsed build's DNS: Python imports this when it starts, and finds rehearsed environments under their own names.

REHEARSED_NAMES is a JSON object: for each name the loopback port that stands in for its port 443. Clients go on to ask for
the name: in TLS, where the certificate must be for it, and in the Host header.
"""

import _socket
import json
import os
from typing import Any

_ports: dict[str, int] = json.loads(os.environ.get("REHEARSED_NAMES", "{}"))
_look_up = _socket.getaddrinfo  # what `socket` and gevent's threads call, both by this name


def _getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if name in _ports and port in (443, "443", "https"):
        host, port = "127.0.0.1", _ports[name]
    return _look_up(host, port, *arguments, **named)


_socket.getaddrinfo = _getaddrinfo
