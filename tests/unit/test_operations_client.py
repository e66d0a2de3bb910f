"""What `make client` prints, run by a shell: the variables that it sets."""

from __future__ import annotations

import subprocess

from operations.client import lines

OUTPUTS = {
    "Url": "https://mlflow.example.com",
    "TokenIssuer": "https://login.example.com",
    "TokenRequest": "scope=mlflow-prod%2Faccess&audience=my+platform",
    "TokenSecret": "arn:aws:secretsmanager:eu-west-1:444444444444:secret:machines-a1b2c3",
}


def variables(text: str) -> dict[str, str]:
    """What a shell has after these lines; `python` says as which command it was called."""
    script = f'python() {{ echo "token by $*"; }}\n{text}\nprintenv'
    done = subprocess.run(
        ["bash", "-euc", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: value for name, value in found.items() if name.startswith(("MLFLOW_", "TOKEN_"))}


def test_without_sign_in_the_url_is_all() -> None:
    assert variables(lines({"Url": "http://internal-mlflow.example.com"})) == {
        "MLFLOW_TRACKING_URI": "http://internal-mlflow.example.com"
    }


def test_with_sign_in_there_is_a_token_and_where_it_is_from() -> None:
    assert variables(lines(OUTPUTS)) == {
        "MLFLOW_TRACKING_URI": OUTPUTS["Url"],
        "TOKEN_ISSUER": OUTPUTS["TokenIssuer"],
        "TOKEN_REQUEST": OUTPUTS["TokenRequest"],
        "TOKEN_SECRET_ARN": OUTPUTS["TokenSecret"],
        "MLFLOW_TRACKING_TOKEN": "token by -m operations token",
    }


def test_mlflows_own_users_are_asked_for_their_password() -> None:
    arn = "arn:aws:secretsmanager:eu-west-1:444444444444:secret:admin-a1b2c3"
    text = lines({"Url": OUTPUTS["Url"], "AdminSecret": arn})
    answers = 'read() { printf -v "${@: -1}" "typed at %s" "$2"; }'
    assert variables(f"{answers}\n{text}") == {
        "MLFLOW_TRACKING_URI": OUTPUTS["Url"],
        "MLFLOW_TRACKING_USERNAME": "typed at MLflow user: ",
        "MLFLOW_TRACKING_PASSWORD": "typed at Password: ",
    }
    shown, administrator = text.split("in place of the last two lines:\n")
    as_administrator = "\n".join(line.removeprefix("# ") for line in administrator.splitlines())
    assert variables(as_administrator) == {
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "token by -m operations password",
    }
    assert arn not in shown


def test_no_secret_is_printed() -> None:
    assert "client_secret" not in lines(OUTPUTS)
