"""The environment's own name: its certificate, and the record that leads to the load balancer."""

from __future__ import annotations

from .assembly import Platform, of_type

LISTENER = "AWS::ElasticLoadBalancingV2::Listener"


def test_a_certificate_that_is_there_already_is_used_as_it_is(public_platform: Platform) -> None:
    listener = public_platform.only(LISTENER).properties
    assert listener["Certificates"] == [{"CertificateArn": public_platform.settings.certificate_arn}]
    for made in ("AWS::CertificateManager::Certificate", "AWS::Route53::RecordSet"):
        assert not of_type(public_platform.resources, made)


def test_with_a_hosted_zone_certificate_and_record_are_made(zone_platform: Platform) -> None:
    certificate = zone_platform.only("AWS::CertificateManager::Certificate")
    assert certificate.properties["DomainName"] == "mlflow.example.com"
    assert certificate.properties["ValidationMethod"] == "DNS"
    (validation,) = certificate.properties["DomainValidationOptions"]
    assert validation == {"DomainName": "mlflow.example.com", "HostedZoneId": "Z0123456789ABCDEFGHIJ"}
    listener = zone_platform.only(LISTENER).properties
    assert listener["Certificates"] == [{"CertificateArn": f"<{certificate.path}>"}]
    record = zone_platform.only("AWS::Route53::RecordSet").properties
    assert (record["Name"], record["Type"]) == ("mlflow.example.com.", "A")
    assert record["HostedZoneId"] == "Z0123456789ABCDEFGHIJ"
    assert "<tracking/LoadBalancer.DNSName>" in record["AliasTarget"]["DNSName"]


def test_inside_the_network_it_is_https_too_and_sign_in_is_possible(zone_platform: Platform) -> None:
    assert zone_platform.settings.exposure == "internal"
    listener = zone_platform.only(LISTENER).properties
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert "TLS13" in listener["SslPolicy"]
    variables = zone_platform.at("gates/Smoke/Project").properties["Environment"]["EnvironmentVariables"]
    assert {
        "Name": "MLFLOW_TRACKING_URI",
        "Type": "PLAINTEXT",
        "Value": "https://mlflow.example.com",
    } in variables
