"""No request waits for the database for ever, not even for one whose process is stopped while its connections stay open.

Such a server's kernel still acknowledges what it is sent, so that no timeout of TCP notices, and its own statement timeout
is as frozen as it is. MLflow sets no limits. Here the server's limit comes first: it ends a statement that is merely
slow, and the connection lives on. The client's ends what the server does not, and the connection with it: whether a
COMMIT that got no answer took place, nobody can tell then.

At the worst a request waits for a connection (POOL_SECONDS), finds it dead (CLIENT_SECONDS), and cannot open another one
(5 s, settings.py): 55 s, while the load balancer waits for 60 s.
"""

from typing import Any, TypeVar

import psycopg
from database import before_connecting
from failures import plain
from psycopg.abc import PQGen
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import OperationalError, TimeoutError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

POOL_SECONDS = 10.0
STATEMENT_SECONDS = 35
CLIENT_SECONDS = 40.0

# For PGOPTIONS: the server's own connections only, as a migration may rightly take longer.
POSTGRESQL = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "idle_in_transaction_session_timeout": "60s",  # a task that hangs must not keep its row locks
}
# MariaDB executes the first comment, in seconds, and MySQL the second, in milliseconds and for SELECT only.
MYSQL = (
    f"SET SESSION innodb_lock_wait_timeout = {STATEMENT_SECONDS}"
    f" /*M!100101 , max_statement_time = {STATEMENT_SECONDS} */"
    f" /*!50708 , max_execution_time = {STATEMENT_SECONDS * 1000} */"
)

_T = TypeVar("_T")


def bound() -> None:
    """Bound every wait for the database in this process, before any engine is made."""
    from mlflow.store.db import utils

    psycopg.connect = _Connection.connect
    before_connecting(_bound_mysql)
    # MLflow takes its pool's class by this name, and has no setting for how long it waits.
    utils.QueuePool = _Pool
    # A store that is opened by its first request would try ten times, for 100 s. `serve` has tried before.
    utils.MAX_RETRY_COUNT = 1


class _Connection(psycopg.Connection[Any]):
    """A connection to PostgreSQL that is closed when an answer does not come in time."""

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        try:
            return super().wait(gen, interval, timeout or CLIENT_SECONDS)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {CLIENT_SECONDS:.0f} s") from None


def _bound_mysql(dialect: Dialect, parameters: dict[str, Any]) -> None:
    if dialect.driver == "pymysql":
        parameters.update(read_timeout=CLIENT_SECONDS, write_timeout=CLIENT_SECONDS, init_command=MYSQL)


class _Pool(QueuePool):
    """A pool that waits for less than SQLAlchemy's 30 s, and whose waiting in vain MLflow answers by 503, not 400."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "timeout": POOL_SECONDS})

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except TimeoutError as error:
            raise plain(OperationalError(None, None, error), str(error)) from None
