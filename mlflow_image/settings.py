"""The container's environment variables, read once and checked before anything else happens.

| variable                           | meaning                                                 | default     |
|------------------------------------|---------------------------------------------------------|-------------|
| DATABASE_ENGINE                    | postgresql, or mysql, which MariaDB is too              | postgresql  |
| DATABASE_HOST                      | host name of the database server                        | required    |
| DATABASE_PORT                      | its port                                                | 5432, 3306  |
| DATABASE_NAME                      | the database on it                                      | required    |
| DATABASE_USER                      | who signs in                                            | required    |
| DATABASE_SIGN_IN                   | password; iam: with a token of the task's role (RDS)    | password    |
| DATABASE_PASSWORD                  | the password; any characters. Not with iam              | required    |
| DATABASE_SECRET_ARN                | the secret to read again when the password was rotated  | none        |
| DATABASE_SSLMODE                   | libpq's sslmode; on MySQL, prefer means without TLS     | prefer      |
| DATABASE_SSLROOTCERT               | verify-ca, verify-full: file of who may sign its server | RDS's own   |
| ARTIFACTS_DESTINATION              | where artifacts go: s3://bucket or s3://bucket/prefix   | required    |
| MLFLOW_HOST                        | address to listen on                                    | 0.0.0.0     |
| MLFLOW_PORT                        | port to listen on                                       | 5000        |
| WORKERS                            | server processes; each takes about 250 MB               | 1           |
| MLFLOW_SERVER_ALLOWED_HOSTS        | Host headers to answer, port included unless 80 or 443  | private IPs |
| MLFLOW_SERVER_CORS_ALLOWED_ORIGINS | origins whose pages may write                           | those hosts |
| MLFLOW_SPEED                       | off: as slow as MLflow's own; or names (`speed.py`)     | all of them |
| MLFLOW_CRYPTO_KEK_PASSPHRASE       | encrypts the gateway's API keys; the same for all tasks | required    |
| MLFLOW_FLASK_SERVER_SECRET_KEY     | signs sessions; the same for all tasks                  | required    |
| SIGN_IN                            | basic: MLflow's own users sign in; none: nobody does    | none        |
| PASSWORD_SECONDS                   | how long a password that was right is not hashed again  | 60          |
| MLFLOW_AUTH_ADMIN_PASSWORD         | of the user `admin`; SIGN_IN=basic does not go without  | none        |
| GATE_PASSWORD                      | with SIGN_IN=basic: of the user `gates`, if wanted      | none        |

An empty value counts as not set. `migrate` needs the database's variables and SIGN_IN only, and reads these besides:

| variable                 | meaning                                                                  | default |
|--------------------------|--------------------------------------------------------------------------|---------|
| DATABASE_SETUP_USER      | who makes DATABASE_USER and gives it the database, before all else       | none    |
| DATABASE_SETUP_PASSWORD  | with what; any characters                                                | none    |
| DATABASE_OWNER           | with iam: the user that DATABASE_USER acts as, whose the tables are      | none    |
| DATABASE_INSTANCE        | the RDS instance to take a snapshot of before anything changes           | none    |
| DATABASE_CLUSTER         | the Aurora cluster, in place of an instance                              | none    |
| MIGRATE_WITHOUT_SNAPSHOT | true: change the schema without a snapshot                               | false   |
| ALLOW_BREAKING_MIGRATION | the revision up to which breaking migrations may run: this release's own | none    |
| DATABASE_RESTORED_FROM   | the snapshot this database was made from; checked once, before all else  | none    |
| RELEASE_COMMIT           | what the history names as the commit of this release                     | none    |
| RELEASE_IMAGE            | what the history names as its image                                      | none    |
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlencode

import passwords

HOST = (
    r"[\w.-]+|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*"  # a name, an IPv4 or an IPv6 address, without port
)
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TLS_ONLY = SSLMODES[3:]
VERIFYING = SSLMODES[4:]
RDS_CA = Path(__file__).with_name("rds_ca.pem")

# libpq's own limits, in the URI so that they hold for every connection MLflow opens. A database that vanished
# without a word (a failover, a cut network) is noticed after 15 s, by keepalives or by unacknowledged data.
CONNECTION_LIMITS = {
    "connect_timeout": "5",  # seconds, for each address of the host
    "keepalives_idle": "5",  # seconds
    "keepalives_interval": "5",  # seconds
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",  # milliseconds
    "application_name": "mlflow",  # names the connections in pg_stat_activity
}

# What both commands want of MLflow. A variable that is already set wins, so a task definition can differ.
PROCESS_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves the network unasked
    "DO_NOT_TRACK": "true",
    # The UI's list of models would be fetched from GitHub, provider by provider, while a request waits. Empty means the list
    # that comes with MLflow.
    "MLFLOW_MODEL_CATALOG_URI": "",
    "GIT_PYTHON_REFRESH": "quiet",  # the image has no git, and the server needs none
}

# What `mlflow server` would read but this image does not, with what to do instead.
NOT_READ = {
    "MLFLOW_BACKEND_STORE_URI": "set the DATABASE_ variables instead",
    "MLFLOW_REGISTRY_STORE_URI": "the registry is in the same database; unset it",
    "MLFLOW_ARTIFACTS_DESTINATION": "set ARTIFACTS_DESTINATION instead",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT": "set ARTIFACTS_DESTINATION instead",
    "MLFLOW_WORKERS": "set WORKERS instead",
    "MLFLOW_AUTH_CONFIG_PATH": "set SIGN_IN=basic instead",
    "MLFLOW_AUTH_ADMIN_USERNAME": "it is admin; unset it",
}

# MLflow reads these itself. Without the first it would encrypt with a passphrase that is in its source code.
KEYS = ("MLFLOW_CRYPTO_KEK_PASSPHRASE", "MLFLOW_FLASK_SERVER_SECRET_KEY")
KEY_LENGTH = 32
# Of the users that the server itself keeps; it needs them when it starts.
USER_PASSWORDS = {passwords.ADMIN: "MLFLOW_AUTH_ADMIN_PASSWORD", passwords.GATES: "GATE_PASSWORD"}


class SettingsError(Exception):
    """One or more variables are wrong. Each problem is a sentence that names the variable and the mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Database:
    """Where the database is, and how to sign in."""

    host: str
    port: int
    name: str
    user: str
    password: str = field(repr=False)
    sslmode: str
    engine: str = "postgresql"
    authority: str = ""
    """The file of the authorities that may have signed the server's certificate; empty if nobody looks at that."""
    by_token: bool = False
    """Whether the user signs in with a token of the task's role; there is no password then."""

    def uri(self) -> str:
        """The SQLAlchemy URI, without the password: `database.sign_in` gives that to each new connection.

        So no log line, error or command line can show it, and it needs no escaping.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        place = f"{quote(self.user, safe='')}@{host}:{self.port}/{quote(self.name, safe='')}"
        if self.engine == "mysql":
            return f"mysql+pymysql://{place}?charset=utf8mb4"
        authority = {"sslrootcert": self.authority} if self.authority else {}
        query = urlencode({"sslmode": self.sslmode, **authority, **CONNECTION_LIMITS})
        return f"postgresql+psycopg://{place}?{query}"

    def __str__(self) -> str:
        return f"{self.name} on {self.host}:{self.port}"


@dataclass(frozen=True)
class Migration:
    """What `migrate` needs besides the database. An empty text means not set."""

    instance: str
    cluster: str
    without_snapshot: bool
    allowed_up_to: str
    restored_from: str
    commit: str
    image: str
    users: bool = False
    setup: Database | None = None
    """The same database for who makes DATABASE_USER."""
    owner: str = ""
    """Whose the tables are."""


@dataclass(frozen=True)
class SignIn:
    """MLflow's own basic auth: what the users have that the server itself keeps."""

    passwords: dict[str, str] = field(repr=False)
    """By user name."""
    seconds: int
    """How long a password that was right is not hashed again."""


@dataclass(frozen=True)
class Server:
    """What the server needs besides its database."""

    artifacts_destination: str
    host: str
    port: int
    workers: int
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    sign_in: SignIn | None = None


def read_migration(environment: Mapping[str, str]) -> tuple[Database, Migration]:
    """Read what `migrate` needs, or raise SettingsError with every problem found."""
    reader = _Reader(environment)
    database = _database(reader)
    migration = _migration(reader, database)
    reader.finish()
    return database, migration


def read(environment: Mapping[str, str]) -> tuple[Database, Server]:
    """Read all variables, or raise SettingsError with every problem found."""
    reader = _Reader(environment)
    database, server = _database(reader), _server(reader)
    reader.finish()
    return database, server


class _Reader:
    """Collects the problems, so that one start reports them all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def text(self, name: str, default: str | None, mend: str, pattern: str = r"(?s).+") -> str:
        value = self.environment.get(name) or default
        if value is None:
            self.problems.append(f"{name} is not set: {mend}.")
            return ""
        if not re.fullmatch(pattern, value):
            self.problems.append(f"{name} is {value!r}: {mend}.")
        return value

    def key(self, name: str) -> None:
        """Check a secret without ever repeating it. MLflow's own default passphrase is longer than KEY_LENGTH."""
        value = self.environment.get(name, "")
        mend = f"give the same {KEY_LENGTH} or more random characters to all tasks, from the injected secret"
        if not value:
            self.problems.append(f"{name} is not set: {mend}.")
        elif len(value) < KEY_LENGTH or value.startswith("mlflow-default-"):
            self.problems.append(f"{name} is too short or publicly known: {mend}.")

    def password(self, name: str, user: str) -> str:
        """Check a password without ever repeating it."""
        value = self.environment.get(name, "")
        mend = f"generate one of {KEY_LENGTH} or more random characters, in the injected secret"
        if not value:
            self.problems.append(f"{name} is not set: {mend}.")
        elif problem := passwords.problem(user, value):
            self.problems.append(f"{name} is weak ({problem}): {mend}.")
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        value = self.environment.get(name) or str(default)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            self.problems.append(f"{name} is {value!r}: give a whole number from {low} to {high}.")
            return default
        return int(value)

    def words(self, name: str, mend: str, pattern: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in self.environment.get(name, "").split(",") if word.strip())
        for word in words:
            if not re.fullmatch(pattern, word):
                self.problems.append(f"{name} contains {word!r}: {mend}.")
        return words

    def finish(self) -> None:
        if self.problems:
            raise SettingsError(self.problems)


def _database(reader: _Reader) -> Database:
    host = reader.text("DATABASE_HOST", None, "give the database's host name alone, as in db.internal", HOST)
    engine = reader.text("DATABASE_ENGINE", "postgresql", "give postgresql or mysql", "postgresql|mysql")
    port = reader.number("DATABASE_PORT", 3306 if engine == "mysql" else 5432, 1, 65535)
    name = reader.text("DATABASE_NAME", None, "give the name of the database, as in mlflow")
    user = reader.text("DATABASE_USER", None, "give the database user from the injected secret")
    by_token = reader.text("DATABASE_SIGN_IN", "password", "give password or iam", "password|iam") == "iam"
    password = (
        ""
        if by_token
        else reader.text("DATABASE_PASSWORD", None, "give the database password from the injected secret")
    )
    sslmode = reader.text(
        "DATABASE_SSLMODE", "prefer", f"give one of {', '.join(SSLMODES)}", "|".join(SSLMODES)
    )
    if by_token:
        _check_token(reader, sslmode)
    authority = _authority(reader) if sslmode in VERIFYING else ""
    return Database(host, port, name, user, password, sslmode, engine, authority, by_token)


def _authority(reader: _Reader) -> str:
    file = reader.environment.get("DATABASE_SSLROOTCERT") or str(RDS_CA)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:  # ssl's own errors are among them
        reader.problems.append(
            f"DATABASE_SSLROOTCERT is {file!r}, which cannot be used ({error.strerror or error}): name a PEM file with the "
            "authority that signed the database server's certificate."
        )
    return file


def _check_token(reader: _Reader, sslmode: str) -> None:
    for name in ("DATABASE_PASSWORD", "DATABASE_SECRET_ARN"):
        if reader.environment.get(name):
            reader.problems.append(
                f"{name} is set, but DATABASE_SIGN_IN=iam means without a password: unset one of the two."
            )
    if sslmode not in TLS_ONLY:
        reader.problems.append(
            f"DATABASE_SSLMODE is {sslmode!r}, but DATABASE_SIGN_IN=iam sends its token as it is, for anybody on the way to "
            f"use: give one of {', '.join(TLS_ONLY)}."
        )


def _setup(reader: _Reader, database: Database) -> Database | None:
    user = reader.environment.get("DATABASE_SETUP_USER", "")
    if not user:
        return None
    if user == database.user:
        reader.problems.append(
            f"DATABASE_SETUP_USER is DATABASE_USER, {user!r}: name a user of the server's own as DATABASE_USER, or unset "
            "DATABASE_SETUP_USER and DATABASE_SETUP_PASSWORD."
        )
    mend = "give the password of DATABASE_SETUP_USER from the injected secret"
    password = reader.text("DATABASE_SETUP_PASSWORD", None, mend)
    return replace(database, user=user, password=password, by_token=False)


def _owner(reader: _Reader, database: Database, setup: Database | None) -> str:
    if not (setup and database.by_token):
        return database.user
    owner = reader.text(
        "DATABASE_OWNER", None, "give the user that signs in where DATABASE_SIGN_IN is password"
    )
    if owner in (database.user, setup.user):
        reader.problems.append(
            f"DATABASE_OWNER is {owner!r}, who signs in already: name a user beside DATABASE_USER and DATABASE_SETUP_USER, "
            "so that releases with a password and without serve at the same time."
        )
    return owner


def _migration(reader: _Reader, database: Database) -> Migration:
    setup = _setup(reader, database)
    names = "give the identifier as RDS shows it: letters, digits and hyphens"
    identifier = r"|[A-Za-z][A-Za-z0-9-]*"
    return Migration(
        instance=reader.text("DATABASE_INSTANCE", "", names, identifier),
        cluster=reader.text("DATABASE_CLUSTER", "", names, identifier),
        without_snapshot=reader.text("MIGRATE_WITHOUT_SNAPSHOT", "false", "give true or false", "true|false")
        == "true",
        allowed_up_to=reader.text(
            "ALLOW_BREAKING_MIGRATION", "", "give the revision that the refusal named", r"|\w+"
        ),
        # An automated snapshot has a colon in its name (rds:...), a shared one is named by its ARN.
        restored_from=reader.text(
            "DATABASE_RESTORED_FROM", "", "give the snapshot's identifier", r"|[\w:.-]+"
        ),
        commit=reader.text("RELEASE_COMMIT", "", "give the commit's hash", r"|[\w.-]{1,64}"),
        image=reader.text("RELEASE_IMAGE", "", "give the image's name", r"|\S{1,512}"),
        users=_signs_in(reader),
        setup=setup,
        owner=_owner(reader, database, setup),
    )


def _signs_in(reader: _Reader) -> bool:
    basic = reader.text("SIGN_IN", "none", "give none or basic", "none|basic") == "basic"
    if basic and reader.environment.get("DATABASE_ENGINE") == "mysql":
        # Both in MLflow's first migration of them, named fk_user_id.
        reader.problems.append(
            "SIGN_IN is 'basic': MLflow's users need PostgreSQL, as MySQL refuses two foreign keys of one name; unset it."
        )
    return basic


def _sign_in(reader: _Reader) -> SignIn | None:
    if not _signs_in(reader):
        return None
    held = {
        user: reader.password(name, user)
        for user, name in USER_PASSWORDS.items()
        if user == passwords.ADMIN or reader.environment.get(name)
    }
    return SignIn(held, reader.number("PASSWORD_SECONDS", 60, 0, 60))


def _server(reader: _Reader) -> Server:
    for name, mend in NOT_READ.items():
        if reader.environment.get(name):
            reader.problems.append(f"{name} is set, but this image does not read it: {mend}.")
    reader.text(
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "false",
        "this image runs no job runner; unset it",
        "(?i)false|0",
    )
    # Bucket names as S3 allows them: 3 to 63 lower-case letters, digits, dots and hyphens.
    destination = reader.text(
        "ARTIFACTS_DESTINATION",
        None,
        "give the bucket as s3://bucket or s3://bucket/prefix",
        r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?",
    )
    everywhere = "0.0.0.0"  # noqa: S104  a container is reached only through what its network lets in
    host = reader.text("MLFLOW_HOST", everywhere, "give an address to listen on, as in 0.0.0.0", HOST)
    port = reader.number("MLFLOW_PORT", 5000, 1, 65535)
    workers = reader.number("WORKERS", 1, 1, 32)
    # MLflow compares the Host header letter by letter. Clients send it in lower case, but the DNS name that
    # CloudFormation gives a load balancer has capitals in it.
    hosts = tuple(
        host.lower()
        for host in reader.words(
            "MLFLOW_SERVER_ALLOWED_HOSTS",
            "give host names alone, parted by commas, as in mlflow.example.com,localhost:8080",
            r"[\w.*:\[\]-]+",
        )
    )
    # A browser names its origin even when it writes to the very host it loaded the page from, and MLflow
    # refuses what is not listed: without this the UI behind a load balancer could not even search runs. A
    # pattern is left out, as any page on a host that matches it could write with the reader's cookies.
    origins = reader.words(
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
        "give origins parted by commas, as in https://mlflow.example.com",
        r"\*|https?://[\w.*:\[\]-]+",
    ) or tuple(f"{scheme}://{host}" for host in hosts if "*" not in host for scheme in ("https", "http"))
    for name in KEYS:
        reader.key(name)
    return Server(destination, host, port, workers, hosts, origins, _sign_in(reader))
