"""The artifact bucket by the settings: its lifecycle, or a folder of a bucket that is there already."""

from __future__ import annotations

import pytest

from stages.settings import Settings

from .assembly import Platform
from .conftest import synthesized_dev

KEY = "arn:aws:kms:eu-west-1:222222222222:key/c0ffee"


def synthesized(settings: Settings, folder: pytest.TempPathFactory, **artifacts: object) -> Platform:
    content = settings.model_dump(exclude_unset=True)
    content["environments"]["dev"]["artifacts"] = artifacts
    return synthesized_dev(content, folder.mktemp("artifacts")).platform("dev")


def test_the_lifecycle_is_the_settings_own(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dev = synthesized(
        settings, tmp_path_factory, old_versions_days=30, incomplete_uploads_days=2, intelligent_tiering=True
    )
    (rule,) = dev.at("data/Artifacts").properties["LifecycleConfiguration"]["Rules"]
    assert rule == {
        "Status": "Enabled",
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
        "Transitions": [{"StorageClass": "INTELLIGENT_TIERING", "TransitionInDays": 0}],
    }


def test_of_an_existing_bucket_the_server_may_touch_its_folder_alone(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dev = synthesized(settings, tmp_path_factory, bucket="data-lake", prefix="teams/mlflow", key_arn=KEY)
    given = dev.variables("tracking")
    assert given["ARTIFACTS_DESTINATION"] == "s3://data-lake/teams/mlflow"
    granted = {
        (action, resource)
        for action, resource, _ in dev.permissions("tracking/TaskRole")
        if action.startswith(("s3:", "kms:")) and "DatabaseUserKey" not in resource
    }
    objects = ("AbortMultipartUpload", "DeleteObject", "GetObject", "ListMultipartUploadParts", "PutObject")
    assert granted == {
        ("s3:ListBucket", "arn:aws:s3:::data-lake"),
        *((f"s3:{name}", "arn:aws:s3:::data-lake/teams/mlflow/*") for name in objects),
        ("kms:Decrypt", KEY),
        ("kms:GenerateDataKey", KEY),
    }
    (listing,) = [c for action, _, c in dev.permissions("tracking/TaskRole") if action == "s3:ListBucket"]
    assert listing == {"StringLike": {"s3:prefix": ["teams/mlflow", "teams/mlflow/*"]}}

    made = [resource.path for resource in dev.resources if resource.path.startswith("data/A")]
    assert made == ["data/ArtifactsPolicy"], "the bucket is there already"
