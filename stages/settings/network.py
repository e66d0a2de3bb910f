"""Settings of an environment's network, and of who may reach its load balancer from where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.fields import Table, between, ipv4_network, matching


class Network(Table):
    """The VPC."""

    cidr: Annotated[str, ipv4_network(smallest=20, largest=16)]
    availability_zones: Annotated[int, between(2, 3, "a number of zones")]
    nat_gateways: Annotated[int, between(1, 3, "a number of NAT gateways")]

    @model_validator(mode="after")
    def _gateways_fit(self) -> Network:
        if self.nat_gateways > self.availability_zones:
            raise ValueError(
                f"nat_gateways = {self.nat_gateways}: there are only {self.availability_zones} zones; give at most one each"
            )
        return self


class Exposure(Table):
    """The load balancer's side of the outside."""

    exposure: Literal["internal", "internet-facing"]
    certificate_arn: (
        Annotated[
            str,
            matching(
                r"arn:aws[\w-]*:acm:[a-z0-9-]+:\d{12}:certificate/[\w-]+",
                "paste an ARN of the form arn:aws:acm:REGION:ACCOUNT:certificate/ID",
            ),
        ]
        | None
    ) = None
    host_name: (
        Annotated[
            str,
            matching(
                r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}",
                'write a host name such as "mlflow.example.com", lower case',
            ),
        ]
        | None
    ) = None
    ingress_cidrs: list[Annotated[str, ipv4_network(smallest=32, largest=0)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_and_networks_fit(self) -> Exposure:
        if self.certificate_arn is not None and self.host_name is None:
            raise ValueError("host_name: is missing; add the name that the certificate was issued for")
        if self.host_name is not None and self.certificate_arn is None:
            raise ValueError(
                f'host_name = "{self.host_name}": is of use with a certificate for it only; add certificate_arn,'
                " or remove it"
            )
        if self.exposure == "internet-facing":
            if self.certificate_arn is None:
                raise ValueError(
                    'exposure = "internet-facing": plain HTTP is not put on the internet; add certificate_arn'
                )
            if not self.ingress_cidrs:
                raise ValueError(
                    "ingress_cidrs = []: an internet-facing load balancer without clients is of no use; name the"
                    " networks that may reach it"
                )
        return self
