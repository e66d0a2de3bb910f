"""The environment's own name: a certificate for it, and the DNS record that leads to the load balancer.

With `hosted_zone` both are made: AWS proves by a record in that zone that the name is ours, and renews the certificate as
long as the record stands. A certificate that is there already (`certificate_arn`) is used as it is.
"""

from __future__ import annotations

from aws_cdk import aws_certificatemanager as acm
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from constructs import Construct

from stages.settings import Environment
from stages.settings.network import HostedZone


class Domain(Construct):
    """The name's certificate, and its record once there is a load balancer to point it to."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Environment) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._zone = self._hosted_zone(settings.hosted_zone) if settings.hosted_zone else None
        self.certificate = elb.ListenerCertificate.from_arn(settings.certificate_arn or self._issued())

    def point_to(self, balancer: elb.ApplicationLoadBalancer) -> None:
        """Make the record, where the zone is known."""
        if self._zone:
            route53.ARecord(
                self,
                "Record",
                zone=self._zone,
                record_name=self._settings.host_name,
                target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(balancer)),
            )

    def _hosted_zone(self, given: HostedZone) -> route53.IHostedZone:
        return route53.HostedZone.from_hosted_zone_attributes(
            self, "Zone", hosted_zone_id=given.id, zone_name=given.name
        )

    def _issued(self) -> str:
        return acm.Certificate(
            self,
            "Certificate",
            domain_name=self._settings.host_name or "",
            validation=acm.CertificateValidation.from_dns(self._zone),
        ).certificate_arn
