"""The rule packs that every synthesis is checked by: AwsSolutions always, others where the settings want them.

What a pack finds in one construct is acknowledged beside it (`stages/findings.py`). Here is what NIST 800-53 r5 and PCI DSS
3.2.1 find in every resource of a type, for reasons that hold for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aws_cdk import App, CfnResource, Validations
from cdk_nag import AwsSolutionsChecks, NagPack, NIST80053R5Checks, PCIDSS321Checks

from stages.findings import acknowledge_in_packs

PACKS: Mapping[str, type[NagPack]] = {
    "nist-800-53-r5": NIST80053R5Checks,
    "pci-dss-321": PCIDSS321Checks,
}
"""By the setting `compliance`."""

ONE_ROLE = (
    "The policy is written for this role alone, reviewed with it and deleted with it; a managed policy could be attached to"
    " others."
)
OWNERS_BACKUPS = (
    "RDS can go back to any second of a week or more, and Migrate takes a snapshot before each change of the schema; a"
    " backup plan in another account is the account owner's, who selects the database by its tags."
)
LOGGED_ENOUGH = (
    "It is not exported: statements hold what users log, which must not be copied into a log. Errors and slow queries"
    " are exported."
)

EVERYWHERE: Mapping[str, Sequence[tuple[str, str]]] = {
    "AWS::IAM::Policy": [("IAMNoInlinePolicy", ONE_ROLE)],
    "AWS::S3::Bucket": [
        (
            "S3BucketReplicationEnabled",
            "S3 keeps every object in three zones, and old versions stay; the platform is one region's by decision, so a"
            " copy in another one is the account owner's to add.",
        )
    ],
    "AWS::CloudWatch::Alarm": [
        (
            "CloudWatchAlarmAction",
            "Alarms take deployments back by their names, which the rule cannot see; whom the others wake is the account"
            " owner's to say, with a rule on the events that every alarm sends.",
        )
    ],
    "AWS::CodeBuild::Project": [
        (
            "CodeBuildProjectSourceRepoUrl",
            "The project has no repository and no credentials of one: it gets its source from the pipeline, whose connection"
            " GitHub authorized.",
        )
    ],
    "AWS::EC2::VPC": [
        (
            "VPCDefaultSecurityGroupClosed",
            "Nothing is in the default group: every resource has a group of its own. Emptying it would take a function with"
            " rights over all groups.",
        )
    ],
    "AWS::EC2::Route": [
        (
            "VPCNoUnrestrictedRouteToIGW",
            "Only the public subnets have this route; they hold NAT gateways and, if the settings say so, the load"
            " balancer.",
        )
    ],
    "AWS::RDS::DBInstance": [
        ("RDSInBackupPlan", OWNERS_BACKUPS),
        (
            "RDSEnhancedMonitoringEnabled",
            "An instance of a cluster: enhanced monitoring is switched on for the cluster, and goes for all its instances.",
        ),
        ("RDSLoggingEnabled[LogExport::audit]", LOGGED_ENOUGH),
        ("RDSLoggingEnabled[LogExport::general]", LOGGED_ENOUGH),
        (
            "RDSLoggingEnabled[LogExport::upgrade]",
            "RDS writes it during an upgrade to another major version, which the platform never starts by itself.",
        ),
    ],
    "AWS::RDS::DBCluster": [
        ("RDSLoggingEnabled[LogExport::audit]", LOGGED_ENOUGH),
        ("RDSLoggingEnabled[LogExport::general]", LOGGED_ENOUGH),
    ],
}
"""By the type of the resource: the rule, and why it is right that these do not meet it."""


def check(app: App, compliance: Sequence[str]) -> None:
    """Have the app checked when it is synthesized; a finding that nobody acknowledged makes that fail."""
    packs: list[type[NagPack]] = [AwsSolutionsChecks, *(PACKS[name] for name in compliance)]
    if compliance:
        for construct in app.node.find_all():
            if isinstance(construct, CfnResource):
                for rule, reason in EVERYWHERE.get(construct.cfn_resource_type, ()):
                    acknowledge_in_packs(construct, reason, rule)
    Validations.of(app).add_plugins(*(pack(app, verbose=True) for pack in packs))
