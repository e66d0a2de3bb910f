"""The tracking service: MLflow on Fargate behind an application load balancer."""

from __future__ import annotations

from typing import Any

from aws_cdk import Aws, CfnOutput, Duration, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.access import SignIn, default_action, protect
from stages.access_logs import access_log_bucket
from stages.containers import add_sidecar, own_secrets
from stages.data import DataStack
from stages.domain import Domain
from stages.edge import distribution
from stages.findings import acknowledge
from stages.firewall import Firewall
from stages.mlflow_task import MlflowTask
from stages.monitoring import service_alarms
from stages.network import PRIVATE, PUBLIC, NetworkStack
from stages.password_rotation import rotate_password
from stages.scaling import scale
from stages.settings import Environment
from stages.settings.image import Image
from stages.settings.sign_in import EVERYBODY

PORT = 5000

BALANCER_IDLE_TIMEOUT = Duration.seconds(60)
"""The image keeps idle connections open for longer (75 s), so the balancer never writes into a closed one."""

DEREGISTRATION_DELAY = Duration.seconds(60)
"""How long requests in flight may go on when a task leaves: an artifact of 1 GB at 20 MB/s."""

STOP_TIMEOUT = Duration.seconds(40)
"""Between SIGTERM and SIGKILL; the image's own bound for requests still in flight is 25 s."""

STARTUP_GRACE = Duration.seconds(120)
"""Health checks do not count before this: the first start on an empty database creates the schema (12 s of CPU)."""


class TrackingStack(Stack):
    """The service, its load balancer and its alarms. Everything here can be made anew; nothing here holds data."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Environment,
        network: NetworkStack,
        data: DataStack,
        sign_in: SignIn | None,
        image: Image,
        source: str,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self._prefix = prefix
        self._settings = settings
        self._image, self._source = image, source
        self._network = network
        self._data = data
        self._sign_in = sign_in

        self.balancer = self._load_balancer()
        # A certificate is issued for a name of its owner's, never for a load balancer's own.
        own_name = self.balancer.load_balancer_dns_name
        self._host = settings.host_name or (self._edge() if settings.exposure == "cloudfront" else own_name)
        self.url = f"{'https' if settings.encrypted else 'http'}://{self._host}"
        service = self._service()
        self._connect(service)
        targets = self._listen(service)
        scale(service, targets, settings)
        rotate_password(self, prefix, settings.database.rotation_days, network, data, service)
        service_alarms(self, prefix, service, self.balancer, targets)
        CfnOutput(self, "Url", value=self.url, description="Point MLFLOW_TRACKING_URI here")
        if settings.guard:
            Firewall(
                self,
                "Firewall",
                prefix=prefix,
                settings=settings.guard,
                balancer=self.balancer,
                behind_edge=self._through_edge() if settings.exposure == "cloudfront" else None,
            )
        if data.users:
            CfnOutput(
                self,
                "AdminSecret",
                value=data.users.admin_arn,
                description="User and password of MLflow's administrator",
            )
        if settings.host_name and not settings.hosted_zone:
            CfnOutput(
                self, "BalancerName", value=own_name, description="Point a DNS record of host_name here"
            )

    def _load_balancer(self) -> elb.ApplicationLoadBalancer:
        public = self._settings.exposure == "internet-facing"
        group = ec2.SecurityGroup(
            self,
            "BalancerGroup",
            vpc=self._network.vpc,
            description="MLflow load balancer",
            allow_all_outbound=False,
        )
        if EVERYBODY in self._settings.ingress_cidrs:
            acknowledge(group, "The settings say so, and everybody has to sign in.", "EC23")
        balancer = elb.ApplicationLoadBalancer(
            self,
            "LoadBalancer",
            load_balancer_name=self._prefix,
            vpc=self._network.vpc,
            vpc_subnets=PUBLIC if public else PRIVATE,
            internet_facing=public,
            security_group=group,
            idle_timeout=BALANCER_IDLE_TIMEOUT,
            drop_invalid_header_fields=True,
            deletion_protection=self._settings.database.deletion_protection,
        )
        balancer.log_access_logs(access_log_bucket(self, "BalancerLogs", self._settings.logs.days))
        return balancer

    def _edge(self) -> str:
        """Put CloudFront before the load balancer; the name that it gives."""
        logs = access_log_bucket(self, "EdgeLogs", self._settings.logs.days, s3.ObjectOwnership.OBJECT_WRITER)
        return distribution(self, self._prefix, self.balancer, logs).distribution_domain_name

    def _through_edge(self) -> list[str]:
        """Who may come in through CloudFront: the settings' networks, and the gates, which leave through NAT."""
        nat = [f"{address}/32" for address in self._network.nat_addresses]
        return [*self._settings.ingress_cidrs, *nat]

    def _service(self) -> ecs.FargateService:
        settings = self._settings
        cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=self._prefix,
            vpc=self._network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
            enable_fargate_capacity_providers=settings.capacity == "spot",
        )
        role = self._task_role()
        task = MlflowTask(
            self,
            "Task",
            family=self._prefix,
            cpu=settings.cpu,
            memory=settings.memory,
            role=role,
            data=self._data,
            image=self._image,
            source=self._source,
            keys=self._data.server_keys,
            users=self._data.users,
            command="serve",
            ports=[PORT],
            environment={
                "ARTIFACTS_DESTINATION": self._data.artifacts.destination,
                "MLFLOW_SERVER_ALLOWED_HOSTS": self._host,
                "WORKERS": str(settings.workers),
                **self._data.database.client,
                **settings.variables,
            },
            stop_timeout=STOP_TIMEOUT,
            log_group_name=f"/{self._prefix}/tracking",
        )
        assert task.definition.default_container is not None
        for variable, secret in own_secrets(task, "", settings.secrets).items():
            task.definition.default_container.add_secret(variable, secret)
        for sidecar in settings.sidecars:
            add_sidecar(task.definition, sidecar, task.log_group)
        return ecs.FargateService(
            self,
            "Service",
            service_name=self._prefix,
            cluster=cluster,
            task_definition=task.definition,
            desired_count=settings.tasks,
            # Spot tasks get two minutes' notice by SIGTERM, more than their stop timeout, and are replaced.
            capacity_provider_strategies=[
                ecs.CapacityProviderStrategy(capacity_provider="FARGATE_SPOT", weight=1)
            ]
            if settings.capacity == "spot"
            else None,
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            health_check_grace_period=STARTUP_GRACE,
            vpc_subnets=PRIVATE,
            security_groups=[
                ec2.SecurityGroup(
                    self,
                    "ServiceGroup",
                    vpc=self._network.vpc,
                    description="MLflow tasks",
                    allow_all_outbound=False,
                )
            ],
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )

    def _task_role(self) -> iam.Role:
        # Another role for another way to sign in: tasks of the release before keep theirs until the last of them is gone.
        by_token = self._data.database.user_secret_arn is None
        return iam.Role(
            self,
            "TokenTaskRole" if by_token else "TaskRole",
            description="MLflow tasks: artifacts in their own bucket, their own user of the database",
            assumed_by=iam.ServicePrincipal(
                "ecs-tasks.amazonaws.com",
                conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}},
            ),
            managed_policies=[self._data.artifacts.policy],
        )

    def _connect(self, service: ecs.FargateService) -> None:
        service.connections.allow_to(
            self._data.database.connections,
            ec2.Port.tcp(self._data.database.dialect.port),
            "MLflow tasks to their database",
        )
        self._network.let_out(service, "AWS APIs: S3, Secrets Manager, ECR, CloudWatch Logs")

    def _listen(self, service: ecs.FargateService) -> elb.ApplicationTargetGroup:
        targets = elb.ApplicationTargetGroup(
            self,
            "Targets",
            target_group_name=self._prefix,
            vpc=self._network.vpc,
            port=PORT,
            protocol=elb.ApplicationProtocol.HTTP,
            targets=[service],
            deregistration_delay=DEREGISTRATION_DELAY,
            health_check=elb.HealthCheck(
                path="/health",
                healthy_http_codes="200",
                interval=Duration.seconds(10),
                timeout=Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=3,
            ),
        )
        https = self._settings.https
        if https:
            domain = Domain(self, "Domain", settings=self._settings)
            domain.point_to(self.balancer)
            listener = self.balancer.add_listener(
                "Https",
                port=443,
                certificates=[domain.certificate],
                ssl_policy=elb.SslPolicy.TLS13_RES,
                default_action=default_action(targets, self._sign_in),
                open=False,
            )
            if self._sign_in:
                protect(listener, targets, self._sign_in)
        else:
            self.balancer.add_listener(
                "Http",
                port=80,
                protocol=elb.ApplicationProtocol.HTTP,
                default_action=elb.ListenerAction.forward([targets]),
                open=False,
            )
        if self._settings.cloudfront_prefix_list:
            # All of CloudFront, of which this VPC's own distribution alone has a way in.
            edge = ec2.Peer.prefix_list(self._settings.cloudfront_prefix_list)
            self.balancer.connections.allow_from(edge, ec2.Port.HTTP, "CloudFront")
            return targets
        for cidr in self._settings.ingress_cidrs:
            port = ec2.Port.HTTPS if https else ec2.Port.HTTP
            self.balancer.connections.allow_from(ec2.Peer.ipv4(cidr), port, "Named in ingress_cidrs")
        return targets
