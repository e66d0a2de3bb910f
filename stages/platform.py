"""One environment: its stacks, in the order in which they are deployed.

A stack is handed the constructs of the stacks before it. Between stacks such a reference is weak (`cdk.json`,
`defaultCrossStackReferences`): it reads the other stack's output when it is deployed and does not lock it, so that a
database can be replaced while the service still points to the old one (exports would deadlock: aws-cdk #10172).
"""

from __future__ import annotations

from aws_cdk import Environment as AwsEnvironment
from aws_cdk import Stage, Tags
from constructs import Construct

from stages.data import DataStack
from stages.gates import GatesStack
from stages.log_groups import keep_logs
from stages.migration import MigrationStack
from stages.network import NetworkStack
from stages.settings import Settings
from stages.sign_in import sign_in_of
from stages.tracking import TrackingStack


class PlatformStage(Stage):
    """The platform in the account of one environment: the same stacks everywhere, sized by the settings."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, environment: str) -> None:
        own = dict(settings.environments.items())[environment]
        super().__init__(scope, construct_id, env=AwsEnvironment(account=own.account, region=own.region))
        prefix = f"{settings.name}-{environment}"

        network = NetworkStack(
            self,
            "Network",
            stack_name=f"{prefix}-network",
            prefix=prefix,
            settings=settings,
            environment=own,
        )
        data = DataStack(
            self, "Data", stack_name=f"{prefix}-data", prefix=prefix, settings=own, vpc=network.vpc
        )
        sign_in = sign_in_of(self, prefix, own)
        self.migration = MigrationStack(
            self,
            "Migration",
            stack_name=f"{prefix}-migration",
            prefix=prefix,
            settings=settings,
            environment=own,
            network=network,
            data=data,
        )
        tracking = TrackingStack(
            self,
            "Tracking",
            stack_name=f"{prefix}-tracking",
            prefix=prefix,
            settings=own,
            network=network,
            data=data,
            sign_in=sign_in,
            image=settings.image,
            source=settings.source.url,
        )
        tracking.add_stack_dependency(self.migration)
        GatesStack(
            self,
            "Gates",
            stack_name=f"{prefix}-gates",
            prefix=prefix,
            settings=settings,
            environment=own,
            network=network,
            tracking=tracking,
            tokens=sign_in.tokens if sign_in else None,
            users=data.users,
        )

        keep_logs(self, network, own.logs)
        Tags.of(self).add("platform", settings.name)
        Tags.of(self).add("environment", environment)
