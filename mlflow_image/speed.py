"""What makes the server faster than MLflow's own, with the same answers.

Each change is listed here with its reason and with the functions it stands in for or relies on. One that finds any of
them other than it was when the change was made (another MLflow, another Starlette) stays off, and the log says so: then
the server is as slow as MLflow's, and as right. `MLFLOW_SPEED=off` turns all of them off, and a list of names
(`MLFLOW_SPEED=json,requests`) leaves on what it lists.
"""

import ast
import functools
import gc
import hashlib
import importlib
import inspect
import linecache
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VARIABLE = "MLFLOW_SPEED"
VERSION = "3.17.2"  # the MLflow that the changes below were made for


@dataclass(frozen=True)
class Change:
    """One thing done faster. `verified` maps module:name to the hash of that function's or class's source."""

    name: str
    apply: Callable[[Any], None]
    verified: dict[str, str]


def _of(module: str) -> Callable[[Any], None]:
    """Put in place what a module of that name changes in MLflow, loaded when it is asked for."""

    def apply(_application: Any) -> None:
        importlib.import_module(module).apply()

    return apply


def _collector(_application: Any) -> None:
    """Take what the imports made out of the garbage collector's sight, and let it look less often.

    Everything that was imported lives as long as the process, some four hundred thousand objects. Answering one large
    search makes thousands more, which set off full collections: nearly half of that search's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _requests(application: Any) -> None:
    import speed_requests

    speed_requests.apply(application)


def _artifacts(application: Any) -> None:
    import speed_artifacts

    speed_artifacts.apply(application)


STORE, TABLES = (
    "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore",
    "mlflow.store.tracking.dbmodels.models",
)
REGISTRY = "mlflow.store.model_registry.sqlalchemy_store:SqlAlchemyStore"
REGISTRY_TABLES = "mlflow.store.model_registry.dbmodels.models"
JSON = {
    "mlflow.utils.proto_json_utils:message_to_json": "a9b66a85e21d0f11",
    "mlflow.utils.proto_json_utils:_mark_int64_fields": "4a16634e0d8ca868",
    "mlflow.utils.proto_json_utils:_mark_int64_fields_for_proto_maps": "6a48128175d711f8",
    "mlflow.utils.proto_json_utils:_merge_json_dicts": "d4a303ae3cdf2b58",
    "google.protobuf.json_format:_Printer": "cefb42690467f65a",
}
VIEWS = {
    "mlflow.server.handlers:catch_mlflow_exception": "e2b5d5211322f474",
    "mlflow.server.handlers:_disable_if_artifacts_only": "74e27c695a13b7b1",
}
# The collector comes last, because it freezes what the others have loaded.
CHANGES = (
    Change(
        "search",
        _of("speed_search"),
        {
            **JSON,
            "mlflow.server.handlers:_search_runs": "7549b2693d063100",
            "mlflow.server.handlers:search_runs_impl": "8df9382dd1bbac29",
            **VIEWS,
            "mlflow.entities.run:Run": "89f7be1c37c9ebef",
            "mlflow.entities.run_data:RunData": "d53ffc346fec9735",
            "mlflow.entities.run_inputs:RunInputs": "2b06a71cab845183",
            "mlflow.entities.run_outputs:RunOutputs": "8103781f0ea423c7",
            "mlflow.entities.metric:Metric.to_proto": "fd40b900b388c6d9",
        },
    ),
    Change(
        "trace_search",
        _of("speed_trace_search"),
        {
            **JSON,
            "mlflow.server.handlers:_search_traces_v3": "7e3c0710e7ebfabd",
            "mlflow.server.handlers:_wrap_trace_info_response": "48b4938c7c767d91",
            **VIEWS,
            f"{STORE}.search_traces": "4a681268e44b0edc",
            f"{STORE}._trace_query": "c9cdb2db654791b8",
            f"{STORE}._filter_experiment_ids": "e9a3b10d0909ad18",
            f"{STORE}._get_query": "51b53ba62c602fca",
            "mlflow.store.tracking.sqlalchemy_store:_build_trace_infos_from_rows": "d918e648ac437d5d",
            "mlflow.store.tracking.sqlalchemy_store:_get_orderby_clauses_for_search_traces": "3167c0e24822a901",
            "mlflow.store.tracking.sqlalchemy_store:_parse_trace_order_by": "9f83a4325d6f97e3",
            "mlflow.entities.trace_info:TraceInfo": "b77c133f8277d537",
            "mlflow.entities.trace_location:TraceLocation": "a072447dcc03d6ae",
            "mlflow.entities.trace_state:TraceState": "d1be32834eb5256f",
        },
    ),
    Change("json", _of("speed_json"), JSON),
    Change(
        "runs",
        _of("speed_runs"),
        {
            f"{TABLES}:SqlRun.to_mlflow_entity": "dd189709d05fa35f",
            f"{TABLES}:SqlLatestMetric.to_mlflow_entity": "ed77c08f03d747e1",
            f"{TABLES}:SqlParam.to_mlflow_entity": "5bc5d986f2dc739c",
            f"{TABLES}:SqlTag.to_mlflow_entity": "26434edff5d9f90b",
            f"{STORE}._get_eager_run_query_options": "330a2eef9e9f2cc6",
            f"{STORE}._search_runs": "5235efb440f86762",
            f"{STORE}.get_run": "bd060906b88f7c59",
            f"{STORE}._get_run": "bdb42651147d8265",
            f"{STORE}._get_run_inputs": "48b091ad4c46c6d1",
            f"{STORE}._get_model_inputs": "e1fd61eddced1a35",
            f"{STORE}._get_model_outputs": "469fc35c666741a3",
            f"{STORE}._get_model_outputs_bulk": "c4f5e9ee613b396a",
            f"{STORE}.update_run_info": "14938c2a7fe61092",
            "mlflow.entities.run_data:RunData": "d53ffc346fec9735",
        },
    ),
    Change(
        "order",
        _of("speed_order"),
        {
            f"{STORE}._search_runs": "5235efb440f86762",
            f"{STORE}._get_eager_run_query_options": "330a2eef9e9f2cc6",
            f"{STORE}._get_run_inputs": "48b091ad4c46c6d1",
            f"{STORE}._get_model_outputs_bulk": "c4f5e9ee613b396a",
            f"{TABLES}:SqlRun": "e4c00dea58e01e06",
            f"{TABLES}:SqlInput": "c1de1aa3ba3e8057",
            "mlflow.entities.run_info:RunInfo": "20b550ef731eed9e",
            "mlflow.entities.run_data:RunData": "d53ffc346fec9735",
            "mlflow.utils.mlflow_tags:_get_run_name_from_tags": "e78e950a8282857d",
            "mlflow.store.tracking.sqlalchemy_store:_get_orderby_clauses": "c048293f9b23c520",
            "mlflow.store.tracking.sqlalchemy_store:_get_sqlalchemy_filter_clauses": "faede20adc4b42a6",
            f"{TABLES}:SqlLatestMetric": "dcd66eadd915ae06",
            f"{TABLES}:SqlParam": "8642ca9285e4df2a",
            f"{TABLES}:SqlTag": "550a6b9635d9091f",
            "mlflow.utils.search_utils:SearchUtils.get_sql_comparison_func": "fc85eb2277bef52b",
            "mlflow.utils.search_utils:SearchUtils.parse_order_by_for_search_runs": "2b2e43930722e236",
            "mlflow.utils.search_utils:SearchUtils.is_metric": "eb3d66617374b183",
            "mlflow.utils.search_utils:SearchUtils.translate_key_alias": "ba25366ff2aba9d4",
        },
    ),
    Change(
        "history",
        _of("speed_history"),
        {
            "mlflow.server.handlers:_get_metric_history": "36f50171b2d09e85",
            **VIEWS,
            f"{STORE}.get_metric_history": "2dc49cb772ee972b",
            f"{TABLES}:SqlMetric.to_mlflow_entity": "ed77c08f03d747e1",
            "mlflow.entities.metric:Metric.to_proto": "fd40b900b388c6d9",
        },
    ),
    Change(
        "writes",
        _of("speed_writes"),
        {
            f"{STORE}.log_batch": "5616623d30fd5426",
            f"{STORE}.log_metric": "6879e33b0b4706d9",
            f"{STORE}._log_metrics": "0affe82445dca798",
            f"{STORE}._log_metrics_once": "f1c94a7256af5033",
            f"{STORE}._update_latest_metrics_if_necessary": "9a68eb580f007f5e",
            f"{STORE}.sanitize_metric_value": "6552ab68700c2dcd",
            f"{STORE}._log_params": "35754b45b5a5d30a",
            f"{STORE}._log_model_metrics": "9d372bcc541d31f6",
            f"{STORE}._set_tags": "a47520dc63cd5d01",
            f"{STORE}._check_run_is_active": "2d0a464a2b7cfff5",
            f"{STORE}._run_with_deadlock_retry": "70d4e3178cd9770f",
            f"{STORE}._get_query": "51b53ba62c602fca",
            "mlflow.utils.validation:_validate_batch_log_data": "1f02c1f067b65111",
            "mlflow.entities.metric:Metric.__eq__": "6756044cd9f0d65f",
        },
    ),
    Change(
        "traces",
        _of("speed_traces"),
        {
            f"{STORE}._log_spans_once": "6abc5a23ddf61e7e",
            f"{STORE}._update_trace_info_attributes": "a5ee16cac0cba879",
            f"{STORE}._get_trace_artifact_location_tag": "d57d764ab0a8153b",
            f"{STORE}._advance_db_payload_generations_for_db_span_writes": "946dbf5716b81b05",
            f"{STORE}._get_query": "51b53ba62c602fca",
            "mlflow.store.tracking.sqlalchemy_store:_bulk_upsert": "4e227a4061834562",
            "mlflow.store.tracking.sqlalchemy_store:_upsert_batch": "f61a8cbd053a88b4",
            "mlflow.store.tracking.sqlalchemy_store:_span_aggregation_node": "1ce32d22e8acfbf8",
            f"{TABLES}:SqlTraceInfo": "b5568d7775e09fa2",
            f"{TABLES}:SqlTraceTag": "6b7b8fc9400339e9",
            f"{TABLES}:SqlTraceMetadata": "3786f10043dd383a",
            f"{TABLES}:SqlSpan": "28cae248fdce0bc8",
        },
    ),
    Change(
        "starts",
        _of("speed_starts"),
        {
            f"{STORE}.get_experiment": "2a9f494743d247ce",
            f"{STORE}._get_experiment": "e0b652dfc2f17b39",
            f"{STORE}._to_experiment": "21273162f46b68b0",
            f"{STORE}._get_effective_experiment_trace_archival_retention_context": "0c1fdda16fc7c80d",
            f"{STORE}.create_run": "1977e5b6797b5385",
            f"{STORE}.update_run_info": "14938c2a7fe61092",
            f"{STORE}._get_run": "bdb42651147d8265",
            f"{STORE}._get_query": "51b53ba62c602fca",
            f"{TABLES}:SqlRun": "e4c00dea58e01e06",
            f"{TABLES}:SqlExperiment": "96063051fa70d15c",
            f"{TABLES}:SqlExperimentTag": "2c67947761871edd",
            "mlflow.entities.run_info:RunInfo": "20b550ef731eed9e",
            "mlflow.entities.run_data:RunData": "d53ffc346fec9735",
        },
    ),
    Change(
        "registry",
        _of("speed_registry"),
        {
            f"{REGISTRY}.get_model_version_by_alias": "a41cb6cbd4c0bf43",
            f"{REGISTRY}._get_registered_model": "a0e61037ee3ab48f",
            f"{REGISTRY}._get_registered_model_alias": "3ec614686ce0a92c",
            f"{REGISTRY}._get_sql_model_version": "8fdbb62e12ec9926",
            f"{REGISTRY}._get_model_version_from_db": "e0c51c90f9efef54",
            f"{REGISTRY}._populate_model_version_aliases": "db54a8322e14cdd6",
            f"{REGISTRY}.create_model_version": "44a8591ab1b68958",
            f"{REGISTRY}.delete_model_version": "bcaab8cfc5c6720b",
            f"{REGISTRY}.set_registered_model_alias": "512b55b3de340d96",
            f"{REGISTRY}._get_active_workspace": "e36c4c1d9f63e58a",
            f"{REGISTRY}._get_query": "92c8c82ee432cbf2",
            f"{REGISTRY_TABLES}:SqlModelVersion": "ed8e9928ff8f1aaf",
            f"{REGISTRY_TABLES}:SqlModelVersionTag": "277ee0db4ada0549",
            f"{REGISTRY_TABLES}:SqlRegisteredModelAlias": "cd9d7d6452639314",
        },
    ),
    Change(
        "graphql",
        _of("speed_graphql"),
        {
            **VIEWS,
            "mlflow.server.handlers:_graphql": "9505d676f1164c47",
            "mlflow.server.handlers:_get_graphql_auth_middleware": "73e1941a12b6454b",
        },
    ),
    Change(
        "database",
        _of("speed_database"),
        {
            "mlflow.store.db.utils:_get_managed_session_maker": "1f18307528cb24b6",
            "mlflow.store.db.utils:_get_routing_session_maker": "1df525f636ca97fe",
            f"{STORE}.__init__": "bdd2e1a3d33927c3",
            f"{REGISTRY}.__init__": "b9b2486e52a57d94",
        },
    ),
    Change(
        "requests",
        _requests,
        {
            "mlflow.server.fastapi_app:_EfficientWSGIResponder": "f5e1df51786cd702",
            "mlflow.server.fastapi_app:_EfficientWSGIMiddleware": "98bcb48fe09d775e",
            "mlflow.server.fastapi_app:add_fastapi_workspace_middleware": "d8d5ee8b68c37228",
            "mlflow.server.fastapi_app:add_gateway_timing_middleware": "8ddc5843da616e60",
            "mlflow.server.fastapi_app:create_fastapi_app": "eea5803dc258b688",
            "mlflow.server.workspace_helpers:resolve_workspace_for_request_if_enabled": "6a120d154ab0367e",
            "starlette.middleware.wsgi:WSGIResponder": "bc561741d87eab7e",
            "starlette.middleware.wsgi:build_environ": "9d56b2a7fee453da",
            "starlette.routing:Mount.matches": "ac97bc77afeab550",
            "starlette.middleware.base:BaseHTTPMiddleware": "c161ef5c0c4712ab",
        },
    ),
    Change(
        "artifacts",
        _artifacts,
        {
            "mlflow.server.artifact_router:download_artifact": "9b41d1eff05a3c2d",
            "mlflow.server.artifact_router:_get_artifact_repo": "77729d26d584977d",
            "mlflow.server.artifact_router:_get_workspace_scoped_path": "37456f62fdf80ea8",
            "mlflow.store.artifact.s3_artifact_repo:_get_s3_client": "727ac0d629db6843",
            "mlflow.store.artifact.s3_artifact_repo:_cached_get_s3_client": "3d7461a7d59a9075",
            "mlflow.store.artifact.s3_artifact_repo:S3ArtifactRepository._download_file": "872869d31ba32a7b",
            "mlflow.store.artifact.s3_artifact_repo:S3ArtifactRepository.parse_s3_compliant_uri": "0af007f650e79dba",
            "mlflow.store.artifact.artifact_repo:ArtifactRepository.download_artifacts": "f5586cb01c023599",
            "mlflow.utils.mime_type_utils:_guess_mime_type": "ce2e2298d853ac4f",
            "botocore.auth:SigV4Auth.add_auth": "0a37f12b13c3d758",
            "botocore.awsrequest:AWSRequest.__init__": "a81fe7edbbc56b5e",
            "botocore.awsrequest:AWSRequest.prepare": "81d1a10a868867c4",
            "botocore.client:BaseClient._resolve_endpoint_ruleset": "3f25c08bf2b07c9a",
            "botocore.httpchecksum:BaseChecksum.handle": "def94e5fddde3f03",
            "botocore.httpchecksum:_handle_streaming_response": "67eb0f0c31a5bc62",
            "botocore.httpchecksum:handle_checksum_body": "3c4d161ff7431235",
            "botocore.httpsession:URLLib3Session.send": "e9e5027655943f69",
            "botocore.signers:RequestSigner.get_auth_instance": "cef293447a8fab22",
        },
    ),
    Change("collector", _collector, {}),
)


def apply(application: Any) -> None:
    """Put the changes in place that are asked for and fit what is installed."""
    asked = os.environ.get(VARIABLE, "").replace(" ", "")
    names = {change.name for change in CHANGES}
    if asked == "off":
        return
    wanted = set(asked.split(",")) if asked else names
    if unknown := wanted - names:
        print(
            f"{VARIABLE} names {', '.join(sorted(unknown))}, which is none of {', '.join(sorted(names))} or off.",
            file=sys.stderr,
            flush=True,
        )
    others = {change.name: differing(change) for change in CHANGES if change.name in wanted}
    # Only now, because a change may replace what another one was made for.
    for change in CHANGES:
        if other := others.get(change.name):
            print(f"The faster {change.name} stays off: {other}.", file=sys.stderr, flush=True)
        elif change.name in wanted:
            change.apply(application)
    # Reading the sources to verify them has put whole files there.
    linecache.clearcache()


def differing(change: Change) -> str:
    """What is installed that `change` was not made for, in a few words; empty if nothing is."""
    import mlflow

    if change.verified and mlflow.__version__ != VERSION:
        return f"it was made for MLflow {VERSION}, and this is {mlflow.__version__}"
    for place, expected in change.verified.items():
        if (found := digest(place)) != expected:
            return f"{place} is {found}, not {expected} as it was when the change was made"
    return ""


def digest(place: str) -> str:
    """The hash of the source of what `place` (module:name) names; "missing" where there is no such thing."""
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        source = _source(found)
    except (ImportError, AttributeError, OSError, TypeError):
        return "missing"
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _source(found: Any) -> str:
    """What `inspect` gives, which parses the whole module anew for each class."""
    file = inspect.getsourcefile(found) or "" if inspect.isclass(found) else ""
    begins = _classes(file).get(found.__qualname__) if file else None
    if begins is None:
        return inspect.getsource(found)
    return "".join(inspect.getblock(linecache.getlines(file)[begins:]))


@functools.cache
def _classes(file: str) -> dict[str, int]:
    """The line, from zero on, where each class of a file begins, decorators included."""
    module = ast.parse("".join(linecache.getlines(file)))
    return {
        node.name: min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
