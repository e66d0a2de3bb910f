"""MLflow's own users: made once, with good passwords, and what is changed about them holds at once."""

from __future__ import annotations

import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cachetools import TTLCache
from mlflow.server.auth.entities import User
from mlflow.utils.validation import _validate_password

from ..test_image_entrypoint import IMAGE, Task
from .conftest import ADMIN, AS_ADMIN, AS_GATES, GATES, USERS, Platform, Template, signed


def test_first_starts_at_once_make_each_user_once(platform: Platform) -> None:
    assert platform.rows("SELECT username, is_admin FROM users WHERE username IN ('admin', 'gates')") == [
        ("admin", True),
        ("gates", False),
    ]
    assert platform.statuses(AS_ADMIN) == {200}
    assert platform.statuses(AS_GATES) == {200}


def test_users_made_at_once_are_made_once(platform: Platform) -> None:
    def make(number: int) -> tuple[int, Any]:
        body = {"username": f"twin-{number % 4}", "password": "oranges-And-le7ters"}
        return platform.tasks[number % 2].post(f"{USERS}/create", body, **AS_ADMIN)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(make, range(16)))
    assert sorted(status for status, _ in answers) == [200] * 4 + [400] * 12
    refused = {answer["error_code"] for status, answer in answers if status == 400}
    assert refused == {"RESOURCE_ALREADY_EXISTS"}
    assert not [answer for _, answer in answers if platform.database in str(answer)], "names of the database"


def test_migrate_makes_the_users_tables_and_no_server_does(template: Template) -> None:
    assert "has no user schema: run `entrypoint.py migrate` first." in template.refused
    assert "Creating MLflow's user schema: " in template.first
    assert "user schema" not in template.again
    for output in (template.first, template.again):
        # The schema was there, and there were no users yet: nothing to ask about, nothing to copy.
        told = json.loads(output.splitlines()[-1])
        assert (told["kind"], told["applied"], told["snapshot"]) == ("none", [], "")


def test_passwords_are_in_no_command_line_no_worker_and_no_log(platform: Platform) -> None:
    for task in platform.tasks:
        parent, *workers = task.tree
        assert len(workers) >= 2
        for secret in (ADMIN, GATES):
            assert secret not in task.output
            for process in (parent, *workers):
                assert secret not in " ".join(process.cmdline())
            for process in workers:
                assert secret not in process.environ().values()


def test_a_new_password_in_the_secret_is_taken_up_by_the_next_task(platform: Platform) -> None:
    assert platform.statuses(AS_GATES) == {200}  # and is remembered
    rotated = "Rot8tEd" * 7
    after = Task({**platform.variables, "GATE_PASSWORD": rotated}).wait_healthy()
    assert "Gave the user gates the password of the secret." in after.output
    assert "Gave the user admin" not in after.output
    after.stop()
    assert platform.statuses(AS_GATES) == {401}
    assert platform.statuses(signed("gates", rotated)) == {200}
    back = {"username": "gates", "password": GATES}
    assert platform.ask(AS_ADMIN, "PATCH", f"{USERS}/update-password", back)[0] == 200


def test_what_is_changed_holds_at_once_everywhere(platform: Platform) -> None:
    who = platform.user("passing")
    assert platform.statuses(who) == {200}
    password = "another-One-t0-remember"
    status, _ = platform.ask(
        AS_ADMIN, "PATCH", f"{USERS}/update-password", {"username": "passing", "password": password}
    )
    assert status == 200
    assert platform.statuses(who) == {401}
    who = signed("passing", password)
    assert platform.statuses(who) == {200}
    assert platform.statuses(who, f"{USERS}/get?username=gates") == {403}
    status, _ = platform.ask(
        AS_ADMIN, "PATCH", f"{USERS}/update-admin", {"username": "passing", "is_admin": True}
    )
    assert status == 200
    assert platform.statuses(who, f"{USERS}/get?username=gates") == {200}
    assert platform.ask(AS_ADMIN, "DELETE", f"{USERS}/delete", {"username": "passing"})[0] == 200
    assert platform.statuses(who) == {401}


@pytest.mark.parametrize(
    "password", ["short", "password1234", "Password123!", "Gates-gates-G4", "aaaaaaaaaaaa"]
)
def test_weak_passwords_are_refused_for_every_user(platform: Platform, password: str) -> None:
    """CVE-2025-11200."""
    for method, path, user in (("POST", "create", "weakling"), ("PATCH", "update-password", "gates")):
        body = {"username": user, "password": password}
        status, answer = platform.ask(AS_ADMIN, method, f"{USERS}/{path}", body)
        assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert platform.statuses(AS_GATES) == {200}


def test_mlflow_takes_weak_passwords_shows_everything_to_everybody_and_hashes_each_time() -> None:
    """`passwords.py` and `basic_auth.py` in the image are for this."""
    from mlflow.server import auth

    _validate_password("password1234")
    _validate_password("aaaaaaaaaaaa")
    assert auth.auth_config.default_permission == "READ"
    assert auth.auth_config.auth_cache_ttl_seconds == 0, "each request hashes its password"
    # In the event loop, both who it is and what they may.
    source = inspect.getsource(auth.add_fastapi_permission_middleware)
    assert "user = _authenticate_fastapi_request(request)" in source
    assert "await validator(user.username, request)" in source


def test_a_right_password_is_hashed_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(IMAGE))
    import basic_auth
    from werkzeug.security import check_password_hash, generate_password_hash

    stored, hashed, clock = [generate_password_hash("right")], [], [0.0]

    def find(username: str) -> User | None:
        return User(1, username, stored[-1], False) if username == "there" else None

    def check(stored: str, password: str) -> bool:
        hashed.append(password)
        return bool(check_password_hash(stored, password))

    monkeypatch.setattr(basic_auth, "check_password_hash", check)
    verifier = basic_auth.Verifier(find, 60)
    verifier._right = TTLCache(10, 60, timer=lambda: clock[0])

    def known(user: str, password: str) -> bool:
        return verifier.user(user, password) is not None

    assert [known("there", "right") for _ in range(3)] == [True] * 3
    assert hashed == ["right"]
    assert [known("there", "wrong") for _ in range(2)] == [False] * 2
    assert not known("not there", "right")
    assert hashed == ["right", "wrong", "wrong", "right"], "a user who is not there takes as long"
    clock[0] = 60.0
    assert known("there", "right")
    assert len(hashed) == 5
    stored.append(generate_password_hash("new"))
    assert not known("there", "right")
    assert known("there", "new")
