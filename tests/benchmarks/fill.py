"""A database of a given size, filled by PostgreSQL itself in seconds: what years of MLflow would have written.

Every run has 12 params, 7 tags and 10 metrics, one of them with 10 steps. Half of the runs are in one experiment, the
searched one; the others in nine more. One run in twenty is deleted, which is to say hidden. For ten runs there is one trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

import psycopg

from tests.drills.places import Place

BEGAN = 1_700_000_000_000
"""When the first run started (milliseconds since 1970); one follows every minute."""
HISTORY_STEPS = 1_000
"""Steps of the one metric whose history is read."""
MODEL = "benchmark"
ALIAS = "champion"


@dataclass(frozen=True)
class Content:
    """What is in a filled database, as far as operations name it."""

    experiment_id: str
    """The searched experiment, which has half of the runs."""
    run_ids: tuple[str, ...]
    """A few hundred of its runs."""
    long_run_id: str
    """The run with a metric of HISTORY_STEPS steps."""


FILL: tuple[LiteralString, ...] = (
    # Foreign keys hold by construction; checking them row by row would take most of the time.
    "SET session_replication_role = replica",
    # In the order of the indexes' keys: in that of time, each row would go to another page of each index.
    """
    CREATE TEMPORARY TABLE filled AS
    SELECT n, md5('run ' || n) AS run, CASE WHEN n %% 2 = 0 THEN 1 ELSE 2 + n / 2 %% 9 END AS experiment
    FROM generate_series(1::bigint, %(runs)s) AS n ORDER BY run
    """,
    """
    INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time)
    SELECT e, 'experiment ' || e, 'mlflow-artifacts:/' || e, 'active', %(began)s, %(began)s FROM generate_series(1, 10) AS e
    """,
    "SELECT setval('experiments_experiment_id_seq', 100)",
    """
    INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                      source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time)
    SELECT run, 'adorable-shrike-' || n, 'UNKNOWN', '', '', 'trainer' || n %% 7,
           CASE n %% 10 WHEN 0 THEN 'FAILED' ELSE 'FINISHED' END, started, started + 55000, '',
           CASE WHEN n %% 20 = 18 THEN 'deleted' ELSE 'active' END,
           'mlflow-artifacts:/' || experiment || '/' || run || '/artifacts', experiment,
           CASE WHEN n %% 20 = 18 THEN started + 60000 END
    FROM filled, LATERAL (SELECT %(began)s + n * 60000 AS started) ORDER BY n
    """,
    """
    INSERT INTO params (key, value, run_uuid)
    SELECT key, CASE WHEN p %% 3 = 0 THEN 'a choice of several words, number ' || (n + p) %% 5
           ELSE ((n * p) %% 1000 / 1000.0)::text END, run
    FROM filled, unnest(ARRAY['learning_rate', 'batch_size', 'epochs', 'optimizer', 'dropout', 'layers', 'hidden_size',
         'weight_decay', 'scheduler', 'warmup_steps', 'seed', 'dataset']) WITH ORDINALITY AS of (key, p)
    """,
    """
    INSERT INTO tags (key, value, run_uuid)
    SELECT key, value, run FROM filled, LATERAL (VALUES
        ('mlflow.user', 'trainer' || n %% 7), ('mlflow.source.name', '/opt/project/train/model_' || n %% 30 || '.py'),
        ('mlflow.source.type', 'LOCAL'), ('mlflow.runName', 'adorable-shrike-' || n),
        ('mlflow.source.git.commit', md5('commit ' || n / 10) || 'a1b2c3d4'),
        ('team', 'team ' || n %% 5), ('stage', 'candidate')
    ) AS of (key, value)
    """,
    """
    INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
    SELECT key, (hashint8(n * 100 + m) & 65535) / 65535.0, %(began)s + n * 60000 + 50000, run, 0, false
    FROM filled, unnest(ARRAY['accuracy', 'precision', 'recall', 'f1', 'auc', 'val_loss', 'val_accuracy', 'throughput',
         'duration']) WITH ORDINALITY AS of (key, m)
    """,
    """
    INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
    SELECT 'loss', 2.0 / (step + 1) + (hashint8(n * 1000 + step) & 65535) / 655350.0, %(began)s + n * 60000 + step * 50,
           run, step, false
    FROM filled, LATERAL generate_series(0, CASE WHEN n = 2 THEN %(steps)s ELSE 10 END - 1) AS step
    """,
    """
    INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics
    WHERE key <> 'loss' OR step = CASE WHEN run_uuid = md5('run 2') THEN %(steps)s ELSE 10 END - 1
    """,
    """
    INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status, request_preview,
                            response_preview, trace_name, input_tokens, output_tokens, total_tokens)
    SELECT 'tr-' || md5('trace ' || n), 1, %(began)s + n * 60000, 200 + n %% 1500, 'OK',
           '{"question": "What changed between release ' || n || ' and the one before?"}',
           '{"answer": "' || repeat('Several things changed. ', 6) || '"}', 'agent',
           200 + n %% 50, 100 + n %% 70, 300 + n %% 120
    FROM filled WHERE n %% 10 = 0
    """,
    """
    INSERT INTO trace_tags (key, value, request_id)
    SELECT key, value, 'tr-' || md5('trace ' || n) FROM filled, LATERAL (VALUES
        ('mlflow.artifactLocation', 'mlflow-artifacts:/1/traces/tr-' || md5('trace ' || n) || '/artifacts'),
        ('version', 'v' || n %% 9),
        ('mlflow.trace.spansLocation', 'TRACKING_STORE')
    ) AS of (key, value) WHERE n %% 10 = 0
    """,
    """
    INSERT INTO trace_request_metadata (key, value, request_id)
    SELECT key, value, 'tr-' || md5('trace ' || n) FROM filled, LATERAL (VALUES
        ('mlflow.trace_schema.version', '3'), ('mlflow.user', 'trainer' || n %% 7), ('mlflow.source.type', 'LOCAL'),
        ('mlflow.source.name', '/opt/project/serve/agent.py')
    ) AS of (key, value) WHERE n %% 10 = 0
    """,
    """
    INSERT INTO registered_models (name, creation_time, last_updated_time, description)
    SELECT 'model-' || m, %(began)s, %(began)s, 'The model of team ' || m FROM generate_series(1, 100) AS m
    UNION ALL SELECT %(model)s, %(began)s, %(began)s, 'The one that is asked for'
    """,
    """
    INSERT INTO model_versions (name, version, creation_time, last_updated_time, description, user_id, current_stage, source,
                                run_id, status, status_message, run_link)
    SELECT name, version, %(began)s, %(began)s, '', 'trainer1', 'None',
           'mlflow-artifacts:/1/' || md5('run 2') || '/artifacts/model',
           md5('run 2'), 'READY', NULL, NULL
    FROM registered_models, generate_series(1, 20) AS version
    """,
    "INSERT INTO registered_model_aliases (alias, version, name) VALUES (%(alias)s, 17, %(model)s)",
    "SET session_replication_role = origin",
    "DROP TABLE filled",
)


def fill(place: Place, runs: int) -> Content:
    """Fill a database that has its schema and nothing else."""
    values = {"runs": runs, "began": BEGAN, "steps": HISTORY_STEPS, "model": MODEL, "alias": ALIAS}
    with place.connect() as connection:
        cursor = psycopg.ClientCursor(
            connection
        )  # CREATE TABLE takes no parameters from PostgreSQL's protocol
        for statement in FILL:
            cursor.execute(statement, values)
        # As autovacuum would have left it: with statistics, and pages that are known to be visible to all.
        connection.execute("VACUUM (ANALYZE, FREEZE)")
        found = connection.execute(
            "SELECT run_uuid FROM runs WHERE experiment_id = 1 AND lifecycle_stage = 'active' AND run_uuid <> md5('run 2')"
            " ORDER BY run_uuid LIMIT 400"
        ).fetchall()
        (long,) = connection.execute("SELECT md5('run 2')").fetchone() or ("",)
    return Content("1", tuple(run for (run,) in found), long)
