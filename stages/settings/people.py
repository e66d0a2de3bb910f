"""Settings of who may take on a role in an environment's AWS account."""

from __future__ import annotations

from typing import Annotated

from stages.settings.fields import Table, matching


class People(Table):
    """The identity provider whose groups are mapped to the roles of `stages/people.py`."""

    saml_provider_arn: Annotated[
        str,
        matching(
            r"arn:aws[\w-]*:iam::\d{12}:saml-provider/[\w.-]{1,128}",
            "paste the ARN of the provider in this environment's account: arn:aws:iam::ACCOUNT:saml-provider/NAME",
        ),
    ]
