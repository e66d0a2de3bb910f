"""Alarms: what wakes a platform engineer, by its cause.

They notify nobody yet; each carries in its description what it means for a person.
"""

from __future__ import annotations

from collections.abc import Callable

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_rds as rds
from constructs import Construct

FREE_STORAGE_BYTES = 5 * 1024**3
"""Below this a database is close to stopping: RDS makes an instance unavailable when its storage is full."""


def service_alarms(
    scope: Construct,
    prefix: str,
    service: ecs.FargateService,
    balancer: elb.ApplicationLoadBalancer,
    targets: elb.ApplicationTargetGroup,
) -> None:
    """Alarms on what people feel: errors, slowness, missing tasks, and a service near its size.

    Errors and slowness also take back a deployment during which they begin; the others would speak of both revisions.
    """
    server_errors = _alarm(
        scope,
        "ServerErrors",
        prefix,
        "MLflow answers with errors of its own (5xx): read the service's log group.",
        targets.metrics.http_code_target(elb.HttpCodeTarget.TARGET_5XX_COUNT, period=Duration.minutes(1)),
        threshold=10,
    )
    balancer_errors = _alarm(
        scope,
        "BalancerErrors",
        prefix,
        "The load balancer found no task to answer (502, 503, 504): look at the service's events and health checks.",
        balancer.metrics.http_code_elb(elb.HttpCodeElb.ELB_5XX_COUNT, period=Duration.minutes(1)),
        threshold=10,
    )
    _alarm(
        scope,
        "UnhealthyTasks",
        prefix,
        "A task fails its health check for minutes: it is being replaced, and the replacement fails as well.",
        targets.metrics.unhealthy_host_count(period=Duration.minutes(1), statistic="Maximum"),
        threshold=1,
        minutes=5,
    )
    slow_answers = _alarm(
        scope,
        "SlowAnswers",
        prefix,
        "One request in twenty takes longer than two seconds.",
        targets.metrics.target_response_time(period=Duration.minutes(1), statistic="p95"),
        threshold=2,
        minutes=5,
    )
    _alarm(
        scope,
        "ServiceCpu",
        prefix,
        "The tasks use 85% of their CPU although scaling aims lower: max_tasks or cpu is too small.",
        service.metric_cpu_utilization(period=Duration.minutes(1)),
        threshold=85,
        minutes=15,
    )
    _alarm(
        scope,
        "ServiceMemory",
        prefix,
        "The tasks use 90% of their memory and will be killed above 100%: raise memory or lower workers.",
        service.metric_memory_utilization(period=Duration.minutes(1)),
        threshold=90,
        minutes=5,
    )
    during_deployments = (server_errors, balancer_errors, slow_answers)
    # By name: the alarms know the service's target group, so the service cannot refer to them as well.
    service.enable_deployment_alarms(
        [f"{prefix}-{alarm.node.id.removesuffix('Alarm')}" for alarm in during_deployments],
        behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM,
    )
    service.node.add_dependency(*during_deployments)


def instance_alarms(scope: Construct, prefix: str, database: rds.DatabaseInstance) -> None:
    """Alarms on what stops a database: no storage, no CPU."""
    _database_cpu(scope, prefix, "a larger instance_class", database.metric_cpu_utilization)
    _alarm(
        scope,
        "DatabaseStorage",
        prefix,
        "The database has less than 5 GiB of storage left although it grows by itself: it reached its maximum.",
        database.metric_free_storage_space(period=Duration.minutes(5), statistic="Minimum"),
        threshold=FREE_STORAGE_BYTES,
        comparison=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
    )


def cluster_alarms(scope: Construct, prefix: str, database: rds.DatabaseCluster) -> None:
    """The same for Aurora, whose storage has no end; its CPU is of the capacity that it has scaled to."""
    _database_cpu(scope, prefix, "a larger max_capacity", database.metric_cpu_utilization)
    _alarm(
        scope,
        "DatabaseCapacity",
        prefix,
        "The database runs at its greatest capacity: raise max_capacity, or find the query in Performance Insights.",
        database.metric_acu_utilization(period=Duration.minutes(1)),
        threshold=95,
        minutes=15,
    )


def _database_cpu(
    scope: Construct, prefix: str, mend: str, metric: Callable[..., cloudwatch.IMetric]
) -> None:
    _alarm(
        scope,
        "DatabaseCpu",
        prefix,
        f"The database uses 90% of its CPU: {mend}, or a query to find in Performance Insights.",
        metric(period=Duration.minutes(1)),
        threshold=90,
        minutes=15,
    )


def _alarm(
    scope: Construct,
    name: str,
    prefix: str,
    description: str,
    metric: cloudwatch.IMetric,
    *,
    threshold: float,
    minutes: int = 1,
    comparison: cloudwatch.ComparisonOperator = cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
) -> cloudwatch.Alarm:
    return cloudwatch.Alarm(
        scope,
        f"{name}Alarm",
        alarm_name=f"{prefix}-{name}",
        alarm_description=description,
        metric=metric,
        threshold=threshold,
        comparison_operator=comparison,
        evaluation_periods=minutes,
        treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
    )
