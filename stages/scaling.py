"""How many tasks serve, and when: scaling by load, and a schedule outside of which there are none."""

from __future__ import annotations

from aws_cdk import TimeZone
from aws_cdk import aws_applicationautoscaling as autoscaling
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb

from stages.settings.compute import Compute, Schedule


def scale(
    service: ecs.FargateService, targets: elb.ApplicationTargetGroup, settings: Compute
) -> ecs.ScalableTaskCount:
    """Add tasks by CPU, memory and requests, whichever asks for the most; start and stop all of them by the schedule."""
    tasks = service.auto_scale_task_count(min_capacity=settings.tasks, max_capacity=settings.max_tasks)
    wanted = settings.scaling
    tasks.scale_on_cpu_utilization("Cpu", target_utilization_percent=wanted.cpu_percent)
    tasks.scale_on_memory_utilization("Memory", target_utilization_percent=wanted.memory_percent)
    tasks.scale_on_request_count(
        "Requests", requests_per_target=wanted.requests_per_minute, target_group=targets
    )
    if settings.schedule:
        _follow(tasks, settings, settings.schedule)
    return tasks


def _follow(tasks: ecs.ScalableTaskCount, settings: Compute, schedule: Schedule) -> None:
    zone = TimeZone.of(schedule.time_zone)
    for name, at, least, most in (
        ("Start", schedule.start, settings.tasks, settings.max_tasks),
        ("Stop", schedule.stop, 0, 0),
    ):
        hour, minute = at.split(":")
        tasks.scale_on_schedule(
            name,
            schedule=autoscaling.Schedule.cron(
                minute=str(int(minute)), hour=str(int(hour)), week_day=schedule.days
            ),
            time_zone=zone,
            min_capacity=least,
            max_capacity=most,
        )
