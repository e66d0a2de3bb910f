"""Both sides with MLflow's basic auth: what it costs that somebody signs in with a password."""

from __future__ import annotations

import base64
import dataclasses
import sysconfig
import tempfile
from pathlib import Path

from rehearsal.ports import free_port
from tests.drills.old_versions import Release, Server
from tests.drills.places import Place

from .places import BenchmarkFailed, stock_uri, stock_variables
from .servers import Side

PASSWORD = "bEnCh7mArK" * 4
AUTHORIZATION = f"Basic {base64.b64encode(f'admin:{PASSWORD}'.encode()).decode()}"
WANTED = ("flask_wtf", "wtforms")
"""What MLflow's basic auth needs and `pip install mlflow` does not bring; stock finds the image's."""


def stock_with_users(stock: Side, release: Release, image: Release) -> Side:
    """`mlflow server --app-name basic-auth`, with its defaults but for the users' database, which is the runs' too."""

    def start(place: Place) -> Server:
        folder, port = Path(tempfile.mkdtemp(prefix="benchmark-users-")), free_port()
        for package in WANTED:
            (folder / package).symlink_to(_packages(image) / package)
        settings = {
            "default_permission": "READ",
            "database_uri": stock_uri(place),
            "admin_username": "admin",
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        lines = (f"{name} = {value}" for name, value in settings.items())
        (folder / "auth.ini").write_text("[mlflow]\n" + "\n".join(lines), encoding="utf-8")
        command = [
            *(str(release.python.with_name("mlflow")), "server", "--app-name", "basic-auth"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", stock_uri(place)),
            *("--artifacts-destination", place.variables["ARTIFACTS_DESTINATION"]),
        ]
        variables = {
            "PYTHONPATH": str(folder),
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "benchmark" * 4,
        }
        return Server(command, stock_variables(place.variables) | variables, port)

    return dataclasses.replace(stock, start=start, authorization=AUTHORIZATION)


def image_with_users(image: Side, release: Release, workers: int) -> Side:
    """This image with `SIGN_IN=basic`."""

    def prepare(place: Place) -> None:
        ended = release.migrate(place.variables, MIGRATE_WITHOUT_SNAPSHOT="true", SIGN_IN="basic").wait()
        if ended.status:
            raise BenchmarkFailed(f"the image's migrate failed:\n{ended.output}")

    def start(place: Place) -> Server:
        return release.serve(
            place.variables, WORKERS=str(workers), SIGN_IN="basic", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD
        )

    return dataclasses.replace(image, start=start, prepare=prepare, authorization=AUTHORIZATION)


def _packages(image: Release) -> Path:
    """Where the image's packages are: it is a folder here."""
    home = image.python.parents[1]
    return Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
