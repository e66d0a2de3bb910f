"""What a client sets to use an environment, from the outputs of its tracking stack: ready to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from operations.aws import CannotOperate, environment_client, sentences
from stages.settings import Settings


def client_settings(settings: Settings, environment: str) -> str:
    """The lines for a shell.

    Raises:
        CannotOperate: the stack cannot be read, or is not deployed yet.
    """
    own = dict(settings.environments.items())[environment]
    stack = f"{settings.name}-{environment}-tracking"
    reader = environment_client(settings, own, "cloudformation")
    with sentences(f"reading the stack {stack}"):
        (found,) = reader.describe_stacks(StackName=stack)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}
    if "Url" not in outputs:
        raise CannotOperate(f"{stack}: has no output Url; wait until it is deployed")
    return lines(outputs)


def lines(outputs: Mapping[str, str]) -> str:
    """Exports for the URL and for what is signed in with, which is asked for when they are run."""
    exported = {"MLFLOW_TRACKING_URI": outputs["Url"]}
    if "AdminSecret" in outputs:
        return (
            f"# With the user that an administrator made for you; in a browser, {outputs['Url']} asks for the same:\n"
            f"{_exports(exported)}\n"
            'read -rp "MLflow user: " MLFLOW_TRACKING_USERNAME && export MLFLOW_TRACKING_USERNAME\n'
            'read -rsp "Password: " MLFLOW_TRACKING_PASSWORD && export MLFLOW_TRACKING_PASSWORD\n'
            "# Or as the administrator, with AWS credentials that may read the secret, in place of the last two lines:\n"
            f"# export MLFLOW_TRACKING_USERNAME=admin USER_SECRET_ARN={shlex.quote(outputs['AdminSecret'])}\n"
            '# MLFLOW_TRACKING_PASSWORD="$(python -m operations password)" && export MLFLOW_TRACKING_PASSWORD'
        )
    if "TokenIssuer" not in outputs:
        return _exports(exported)
    exported["TOKEN_ISSUER"] = outputs["TokenIssuer"]
    exported["TOKEN_SECRET_ARN"] = outputs["TokenSecret"]
    exported["TOKEN_REQUEST"] = outputs["TokenRequest"]
    return (
        f"# People: open {outputs['Url']} in a browser. Machines, with AWS credentials that may read the secret:\n"
        f"{_exports(exported)}\n"
        "# Again when it has expired:\n"
        'MLFLOW_TRACKING_TOKEN="$(python -m operations token)" && export MLFLOW_TRACKING_TOKEN'
    )


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
