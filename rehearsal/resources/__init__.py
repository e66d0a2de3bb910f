"""What makes each type of resource real. A type that is not here is declared, not rehearsed."""

from __future__ import annotations

from collections.abc import Mapping

from rehearsal.cloudformation import Provider
from rehearsal.resources.builds import BuildProject, Pipeline
from rehearsal.resources.database import DatabaseCluster, DatabaseInstance
from rehearsal.resources.identity import InlinePolicy, ManagedPolicy, Role
from rehearsal.resources.password_rotation import RotationSchedule, SecretTargetAttachment
from rehearsal.resources.service import (
    Alarm,
    Cluster,
    Distribution,
    Listener,
    ListenerRule,
    LoadBalancer,
    Service,
    TargetGroup,
    TaskDefinition,
)
from rehearsal.resources.storage import Bucket, EncryptionKey, LogGroup, Parameter, Repository, Secret
from rehearsal.resources.user_pool import Named, UserPool, UserPoolClient


def providers() -> Mapping[str, Provider]:
    """A provider for every type that is rehearsed."""
    return {
        "AWS::CloudFront::Distribution": Distribution(),
        "AWS::CloudWatch::Alarm": Alarm(),
        "AWS::CodeBuild::Project": BuildProject(),
        "AWS::CodePipeline::Pipeline": Pipeline(),
        "AWS::Cognito::UserPool": UserPool(),
        "AWS::Cognito::UserPoolClient": UserPoolClient(),
        "AWS::Cognito::UserPoolDomain": Named("Domain"),
        "AWS::Cognito::UserPoolResourceServer": Named("Identifier"),
        "AWS::ECR::Repository": Repository(),
        "AWS::ECS::Cluster": Cluster(),
        "AWS::ECS::Service": Service(),
        "AWS::ECS::TaskDefinition": TaskDefinition(),
        "AWS::ElasticLoadBalancingV2::Listener": Listener(),
        "AWS::ElasticLoadBalancingV2::ListenerRule": ListenerRule(),
        "AWS::ElasticLoadBalancingV2::LoadBalancer": LoadBalancer(),
        "AWS::ElasticLoadBalancingV2::TargetGroup": TargetGroup(),
        "AWS::IAM::ManagedPolicy": ManagedPolicy(),
        "AWS::IAM::Policy": InlinePolicy(),
        "AWS::IAM::Role": Role(),
        "AWS::KMS::Key": EncryptionKey(),
        "AWS::Logs::LogGroup": LogGroup(),
        "AWS::RDS::DBCluster": DatabaseCluster(),
        "AWS::RDS::DBInstance": DatabaseInstance(),
        "AWS::S3::Bucket": Bucket(),
        "AWS::SSM::Parameter": Parameter(),
        "AWS::SecretsManager::RotationSchedule": RotationSchedule(),
        "AWS::SecretsManager::Secret": Secret(),
        "AWS::SecretsManager::SecretTargetAttachment": SecretTargetAttachment(),
    }
