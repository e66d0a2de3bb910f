"""The server that the tests of the rehearsed ECS run as an image. BEHAVIOUR says how it misbehaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BEHAVIOUR = os.environ.get("BEHAVIOUR", "well")
state = {"healthy": BEHAVIOUR != "errors"}
hoard: list[bytes] = []


def confinement() -> dict[str, object]:
    """What a process on Linux may do here, as the kernel says."""

    def writable(folder: str) -> bool:
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                return True
        except OSError:
            return False

    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "uid": os.getuid(),
        "capabilities": [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")],
        "no_new_privileges": int(status["NoNewPrivs"]),
        "writable": [folder for folder in ("/", "/etc", "/run", "/var/tmp", "/tmp") if writable(folder)],
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        status, body = 200, os.environ.get("REVISION", "")
        if url.path == "/health":
            status = 200 if state["healthy"] else 500
        elif url.path == "/environment":
            body = json.dumps(dict(os.environ))
        elif url.path == "/confinement":
            body = json.dumps(confinement())
        elif url.path == "/slow":
            print("slow", flush=True)
            time.sleep(float(parse_qs(url.query)["seconds"][0]))
        elif url.path == "/sicken":
            state["healthy"] = False
        elif url.path == "/crash":
            os._exit(7)
        elif url.path == "/leak":
            hoard.append(os.urandom(120 * 2**20))
        if BEHAVIOUR == "wrong" and url.path != "/health":
            status = 500
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


if BEHAVIOUR == "exit":
    sys.exit("I will not start")
if BEHAVIOUR == "deaf":
    time.sleep(600)
server = Server((os.environ["MLFLOW_HOST"], int(os.environ["MLFLOW_PORT"])), Handler)
print("serving revision", os.environ.get("REVISION"), flush=True)


def leave(*_: object) -> None:
    if BEHAVIOUR != "stubborn":
        threading.Thread(target=server.shutdown).start()


signal.signal(signal.SIGTERM, leave)
server.serve_forever(poll_interval=0.05)
