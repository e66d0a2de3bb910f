"""A build's programs find a rehearsed environment under its own name, and trust its certificate because they are told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rehearsal.certificates import Certificates
from rehearsal.names import Named, variables

HOST = "mlflow.example.com"
PLAIN = f"import requests; print(requests.get('https://{HOST}/', timeout=20).text)"
# As the load check does, whose sockets are gevent's.
LOAD = f"""
from gevent import monkey
monkey.patch_all()
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
session = FastHttpSession("https://{HOST}", Environment().events.request, None, insecure=False)
print(session.get("/").text)
"""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers['Host']} it is".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Named]:
    certificates = Certificates(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = certificates.for_server().wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield Named(HOST, server.server_port, certificates.authority)
    server.shutdown()
    server.server_close()


def ran(program: str, told: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **told}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("program", [PLAIN, LOAD], ids=["requests", "locust"])
def test_a_build_asks_by_name(own: Named, program: str) -> None:
    told = variables([own])
    asked = ran(program, told)
    assert asked.stdout.strip() == f"{HOST} it is", asked.stderr


def test_nobody_is_trusted_who_was_not_told_to_be(own: Named) -> None:
    asked = ran(PLAIN, {**variables([own]), "REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": ""})
    assert "CERTIFICATE_VERIFY_FAILED" in asked.stderr


def test_other_names_and_ports_are_looked_up_as_ever(own: Named) -> None:
    look = f"import socket; print([socket.getaddrinfo(*it)[0][4] for it in (('127.0.0.1', 443), ('localhost', {own.port}))])"
    assert ran(look, variables([own])).stdout == ran(look, {}).stdout


def test_without_names_a_build_is_told_nothing() -> None:
    assert variables([]) == {}
