"""The indexes that MLflow's searches want and MLflow does not make.

Its table of runs has its primary key only, so each list of an experiment's runs reads and sorts all of them; so does one
that is ordered by a metric. An index changes nothing that a server of any version sees. None is worth stopping a release
for: what cannot be made now, because a long transaction is in the way, the next `migrate` tries again.
"""

from contextlib import suppress

import database
import settings
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

# Runs of one experiment, newest first. The interface asks for that order by name, and MLflow then sorts runs without a
# start time last, by this very CASE; clients that name no order get it without.
INDEXES = {
    "platform_runs_by_start_time": (
        "runs (experiment_id, lifecycle_stage, (CASE WHEN start_time IS NULL THEN 1 ELSE 0 END), "
        "start_time DESC, run_uuid)"
    ),
    "platform_runs_newest_first": "runs (experiment_id, lifecycle_stage, start_time DESC, run_uuid)",
    # The values of a metric in order, of all experiments, for `speed_order.py`.
    "platform_metrics_by_value": "latest_metrics (key, is_nan, value, run_uuid)",
}
# CONCURRENTLY lets requests go on, and waits for every transaction that began before; no longer than this for each.
WAIT_SECONDS = 60


def ensure(where: settings.Database) -> dict[str, str]:
    """Make what is missing, and say of each index whether it is there, was made, or why it was not.

    PostgreSQL only: MariaDB cannot index an expression.
    """
    if where.engine != "postgresql":
        return {}
    with database.connect(where) as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(f"SET lock_timeout = '{WAIT_SECONDS}s'")
        # A new expression has no statistics, and without them the planner may not see what its index is good for.
        done = {name: _ensure(connection, name, what) for name, what in INDEXES.items()}
        if "made" in done.values():
            with suppress(DBAPIError):  # autovacuum does it a little later
                connection.exec_driver_sql("ANALYZE runs")
    return done


def _ensure(connection: Connection, name: str, what: str) -> str:
    query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
    valid = connection.execute(sa.text(query), {"name": name}).scalar()
    if valid:
        return "there"
    try:
        if valid is False:  # its making was cut off: it costs each write, and no search can use it
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {what}")
    except DBAPIError as error:
        reason = database.explain(error)
        database.say(
            f"The index {name} was not made ({reason}); searches work without it, the next migrate tries again."
        )
        return f"not made: {reason}"
    database.say(f"Made the index {name}.")
    return "made"
