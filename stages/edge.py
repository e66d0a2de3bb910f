"""HTTPS without a domain: CloudFront, under a name and a certificate of AWS's, before an internal load balancer.

No certificate is issued for a load balancer's own name, and neither browsers nor MLflow's client trust one that we sign
ourselves. Of the ways to a trusted name of AWS's, this is the one through which MLflow works: API Gateway bounds bodies to
10 MB and answers to 30 s, App Runner and Lambda are other servers, VPC Lattice's names lead nowhere outside of a VPC.

CloudFront reaches the load balancer through network interfaces inside the VPC (a VPC origin); the load balancer has private
addresses alone, and admits CloudFront alone. That last leg is HTTP, on AWS's network and in the VPC, because CloudFront
verifies a certificate and there is none. Nothing is cached: MLflow's answers are for one moment and one user.
"""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_cloudfront as cloudfront
from aws_cdk import aws_cloudfront_origins as origins
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.findings import acknowledge

VIEWER_ADDRESS = "x-viewer-ip"
"""The header in which the load balancer's firewall reads where a request is from. CloudFront's own has the port, too."""

VIEWER_TLS = "cloudfront-viewer-tls"
"""CloudFront's header that begins with the version of TLS that a client speaks."""

ANSWER_WITHIN = Duration.seconds(60)
"""As long as the load balancer waits; the server gives up before (`mlflow_image/deadlines.py`)."""

KEEP_ALIVE = Duration.seconds(30)
"""Below the load balancer's idle timeout, so that CloudFront never writes into a closed connection."""

# Whatever a client sends under that name is replaced.
_NAME_THE_VIEWER = f"""function handler(event) {{
    var request = event.request;
    request.headers['{VIEWER_ADDRESS}'] = {{ value: event.viewer.ip }};
    return request;
}}"""


def distribution(
    scope: Construct, prefix: str, balancer: elb.ApplicationLoadBalancer, logs: s3.Bucket
) -> cloudfront.Distribution:
    """A distribution that hands every request on to the load balancer, as it came."""
    made = cloudfront.Distribution(
        scope,
        "Edge",
        comment=f"{prefix}: HTTPS before the internal load balancer",
        default_behavior=cloudfront.BehaviorOptions(
            origin=origins.VpcOrigin.with_application_load_balancer(
                balancer,
                vpc_origin_name=prefix,
                protocol_policy=cloudfront.OriginProtocolPolicy.HTTP_ONLY,
                read_timeout=ANSWER_WITHIN,
                keepalive_timeout=KEEP_ALIVE,
            ),
            allowed_methods=cloudfront.AllowedMethods.ALLOW_ALL,
            cache_policy=cloudfront.CachePolicy.CACHING_DISABLED,
            origin_request_policy=cloudfront.OriginRequestPolicy(
                scope,
                "EverythingTheViewerSent",
                origin_request_policy_name=f"{prefix}-everything",
                header_behavior=cloudfront.OriginRequestHeaderBehavior.all("CloudFront-Viewer-TLS"),
                cookie_behavior=cloudfront.OriginRequestCookieBehavior.all(),
                query_string_behavior=cloudfront.OriginRequestQueryStringBehavior.all(),
            ),
            # Refused and not redirected: a redirect would have received the first request's password in the clear.
            viewer_protocol_policy=cloudfront.ViewerProtocolPolicy.HTTPS_ONLY,
            compress=False,
            function_associations=[
                cloudfront.FunctionAssociation(
                    event_type=cloudfront.FunctionEventType.VIEWER_REQUEST,
                    function=cloudfront.Function(
                        scope,
                        "NameTheViewer",
                        function_name=f"{prefix}-viewer",
                        comment="Tells the load balancer's firewall where a request is from",
                        code=cloudfront.FunctionCode.from_inline(_NAME_THE_VIEWER),
                        runtime=cloudfront.FunctionRuntime.JS_2_0,
                    ),
                )
            ],
        ),
        # The networks that may come in are IPv4.
        enable_ipv6=False,
        http_version=cloudfront.HttpVersion.HTTP2_AND_3,
        log_bucket=logs,
    )
    acknowledge(
        made,
        "Who gets in is a matter of networks and of sign-in, not of countries.",
        "CFR1",
    )
    acknowledge(
        made,
        "The web ACL is on the load balancer, the only way to the servers: one for CloudFront would have to be in us-east-1,"
        " and the pipeline stays in one region.",
        "CFR2",
    )
    acknowledge(
        made,
        "CloudFront's own certificate fixes the lowest version of TLS at 1.0; the web ACL refuses what came by less than"
        " 1.2. With a domain of one's own there is no CloudFront.",
        "CFR4",
    )
    acknowledge(
        made,
        "CloudFront's last leg is inside the VPC. It would verify a certificate, and for a load balancer's own name there is"
        " none.",
        "CFR5",
    )
    return made
