"""Settings of the artifact bucket."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from stages.settings.fields import Table, between, matching
from stages.settings.sentences import shown


class Artifacts(Table):
    """Where artifacts are kept: in a bucket that the platform makes, or in a folder of one that is there already."""

    bucket: (
        Annotated[
            str, matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "write the name of a bucket, without s3://")
        ]
        | None
    ) = None
    prefix: (
        Annotated[
            str,
            matching(
                r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*",
                'write a folder such as "teams/mlflow", without slashes at its ends',
            ),
        ]
        | None
    ) = None
    key_arn: (
        Annotated[
            str,
            matching(
                r"arn:aws[\w-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+",
                "paste the ARN of the bucket's key: arn:aws:kms:REGION:ACCOUNT:key/ID",
            ),
        ]
        | None
    ) = None
    old_versions_days: Annotated[int, between(1, 3650, "a number of days")] = 90
    incomplete_uploads_days: Annotated[int, between(1, 365, "a number of days")] = 7
    intelligent_tiering: bool = False

    @model_validator(mode="after")
    def _one_bucket(self) -> Artifacts:
        if self.bucket is None:
            for name in ("prefix", "key_arn"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} = {shown(value)}: is for a bucket that is there already; add bucket, or remove it"
                    )
            return self
        if self.prefix is None:
            raise ValueError(
                "prefix: is missing; a bucket that others may use is shared by folder, so name one"
            )
        for name in ("old_versions_days", "incomplete_uploads_days", "intelligent_tiering"):
            if name in self.model_fields_set:
                raise ValueError(
                    f"{name} = {shown(getattr(self, name))}: the platform changes nothing about a bucket that is"
                    " there already; set it on the bucket, and remove it here"
                )
        return self
