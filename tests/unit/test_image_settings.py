"""The image's environment variables: what is read, what is refused, and in which words."""

import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trustme
from mlflow.utils.crypto import DEFAULT_KEK_PASSPHRASE

sys.path.insert(0, str(Path(__file__).parents[2] / "mlflow_image"))

import database
import passwords
import settings

GOOD = {
    "DATABASE_HOST": "db.internal",
    "DATABASE_NAME": "mlflow",
    "DATABASE_USER": "mlflow_admin",
    "DATABASE_PASSWORD": "p@:/%w'\" #?&",
    "ARTIFACTS_DESTINATION": "s3://artifacts-111111111111/mlflow",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "p" * 32,
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "s" * 32,
}


def problems(**changes: str) -> list[str]:
    with pytest.raises(settings.SettingsError) as error:
        settings.read(GOOD | changes)
    return error.value.problems


def test_defaults() -> None:
    database, server = settings.read(GOOD)
    assert (database.port, database.sslmode) == (5432, "prefer")
    assert (server.host, server.port, server.workers) == ("0.0.0.0", 5000, 1)
    assert (server.allowed_hosts, server.allowed_origins) == ((), ())


def test_uri_names_everything_but_the_password() -> None:
    odd = GOOD | {"DATABASE_USER": "a@b:c/d", "DATABASE_NAME": "x%y?z", "DATABASE_PORT": "6432"}
    database, _ = settings.read(odd)
    parts = urlsplit(database.uri())
    assert parts.scheme == "postgresql+psycopg"
    assert (unquote(parts.username or ""), parts.hostname, parts.port) == ("a@b:c/d", "db.internal", 6432)
    assert unquote(parts.path) == "/x%y?z"
    assert parts.password is None
    assert "sslmode=prefer" in parts.query
    assert "connect_timeout=5" in parts.query
    assert GOOD["DATABASE_PASSWORD"] not in repr(database)
    assert database.password == GOOD["DATABASE_PASSWORD"]


BY_TOKEN = {"DATABASE_PASSWORD": "", "DATABASE_SIGN_IN": "iam", "DATABASE_SSLMODE": "require"}


def test_a_token_takes_the_password_s_place() -> None:
    database, _ = settings.read(GOOD | BY_TOKEN)
    assert (database.by_token, database.password) == (True, "")
    assert not settings.read(GOOD)[0].by_token


@pytest.mark.parametrize("sslmode", ["", "disable", "allow", "prefer"])
def test_a_token_never_travels_without_tls(sslmode: str) -> None:
    (problem,) = problems(**BY_TOKEN | {"DATABASE_SSLMODE": sslmode})
    assert problem.startswith(
        f"DATABASE_SSLMODE is {sslmode or 'prefer'!r}, but DATABASE_SIGN_IN=iam sends its token"
    )
    assert problem.endswith("give one of require, verify-ca, verify-full.")


def test_a_token_and_a_password_are_one_too_many() -> None:
    both = {"DATABASE_PASSWORD": "p@:", "DATABASE_SECRET_ARN": "arn:aws:secretsmanager:x"}
    found = problems(**BY_TOKEN | both)
    assert [problem.split()[0] for problem in found] == list(both)
    assert "p@:" not in " ".join(found)
    (problem,) = problems(DATABASE_SIGN_IN="kerberos")
    assert problem == "DATABASE_SIGN_IN is 'kerberos': give password or iam."


SETUP = {"DATABASE_SETUP_USER": "master", "DATABASE_SETUP_PASSWORD": "m"}


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        ("", "DATABASE_OWNER is not set: give the user that signs in where DATABASE_SIGN_IN is password."),
        ("mlflow_admin", "DATABASE_OWNER is 'mlflow_admin', who signs in already: name a user beside"),
        ("master", "DATABASE_OWNER is 'master', who signs in already: name a user beside"),
    ],
)
def test_who_signs_in_with_a_token_owns_nothing(owner: str, said: str) -> None:
    with pytest.raises(settings.SettingsError) as error:
        settings.read_migration(GOOD | BY_TOKEN | SETUP | {"DATABASE_OWNER": owner})
    (problem,) = error.value.problems
    assert problem.startswith(said)


def test_whose_the_tables_are() -> None:
    database, how = settings.read_migration(GOOD | BY_TOKEN | SETUP | {"DATABASE_OWNER": "mlflow_server"})
    assert (how.owner, database.by_token) == ("mlflow_server", True)
    assert how.setup
    assert not how.setup.by_token
    assert settings.read_migration(GOOD | SETUP)[1].owner == "mlflow_admin"


def test_ipv6_host() -> None:
    database, _ = settings.read(GOOD | {"DATABASE_HOST": "fd00::12"})
    assert urlsplit(database.uri()).hostname == "fd00::12"


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(settings.SettingsError) as error:
        settings.read({"DATABASE_NAME": ""})
    named = [problem.split()[0] for problem in error.value.problems]
    assert named == [
        "DATABASE_HOST",
        "DATABASE_NAME",
        "DATABASE_USER",
        "DATABASE_PASSWORD",
        "ARTIFACTS_DESTINATION",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
    ]


@pytest.mark.parametrize("name", settings.KEYS)
@pytest.mark.parametrize("value", ["tell-nobody", DEFAULT_KEK_PASSPHRASE])
def test_a_weak_key_is_refused_and_not_repeated(name: str, value: str) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"{name} is too short or publicly known: give the same 32 or more")
    assert value not in problem


BASIC = {"SIGN_IN": "basic", "MLFLOW_AUTH_ADMIN_PASSWORD": "Xy7Qk" * 9}


def test_nobody_signs_in_unless_told() -> None:
    assert settings.read(GOOD)[1].sign_in is None
    assert not settings.read_migration(GOOD)[1].users


def test_users_that_the_server_keeps() -> None:
    _, server = settings.read(GOOD | BASIC | {"GATE_PASSWORD": "Zw8Vp" * 9})
    assert server.sign_in == settings.SignIn({"admin": "Xy7Qk" * 9, "gates": "Zw8Vp" * 9}, 60)
    assert "Xy7Qk" not in repr(server)
    assert settings.read_migration(GOOD | {"SIGN_IN": "basic"})[1].users


@pytest.mark.parametrize("name", ["MLFLOW_AUTH_ADMIN_PASSWORD", "GATE_PASSWORD"])
@pytest.mark.parametrize("value", ["password1234", "Admin-Gates-2026", "Aa1!Aa1!Aa1!"])
def test_a_weak_password_is_refused_and_not_repeated(name: str, value: str) -> None:
    (problem,) = problems(**BASIC | {name: value})
    assert problem.startswith(f"{name} is weak (without the user's name and the words that everybody tries")
    assert value not in problem


def test_no_administrator_without_a_password() -> None:
    (problem,) = problems(SIGN_IN="basic")
    assert problem.startswith("MLFLOW_AUTH_ADMIN_PASSWORD is not set: generate one")


def test_no_users_on_mysql() -> None:
    (problem,) = problems(**BASIC | {"DATABASE_ENGINE": "mysql"})
    assert problem.startswith("SIGN_IN is 'basic': MLflow's users need PostgreSQL")


def test_mlflow_still_names_two_foreign_keys_of_its_users_alike() -> None:
    """If this fails after an update of MLflow, its users may do on MySQL, and need not be refused there any more."""
    versions = database.migrations_folder().parents[1] / "server/auth/db/migrations/versions"
    [first] = versions.glob("*_initial_migration.py")
    assert first.read_text(encoding="utf-8").count('name="fk_user_id"') == 2


def test_passwords() -> None:
    for good in ("correct horse battery staple", "Tr0ub4dor&3-and-more", "ünïcödé-wörter-größe", "x7Gqz" * 9):
        assert passwords.problem("somebody", good) == ""
    assert "fewer than 12" in passwords.problem("somebody", "c0rrecthors")
    assert "more than 256" in passwords.problem("somebody", "abcdefghijk-mnop" * 17)
    for weak in ("password1234", "somebody-2026!", "Qwerty123456", "1234567890123", "abababababababab"):
        assert passwords.problem("somebody", weak), weak


def test_migrate_needs_the_database_only() -> None:
    database, _ = settings.read_migration(GOOD | {"ARTIFACTS_DESTINATION": "", "WORKERS": "many"})
    assert database.host == "db.internal"


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("DATABASE_HOST", "db.internal:5432", "host name alone"),
        ("DATABASE_HOST", "postgresql://db", "host name alone"),
        ("DATABASE_PORT", "0", "from 1 to 65535"),
        ("DATABASE_PORT", "5432.0", "from 1 to 65535"),
        ("DATABASE_SSLMODE", "on", "give one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("ARTIFACTS_DESTINATION", "artifacts", "s3://bucket"),
        ("ARTIFACTS_DESTINATION", "s3://Bucket", "s3://bucket"),
        ("ARTIFACTS_DESTINATION", "s3://bucket?region=x", "s3://bucket"),
        ("MLFLOW_HOST", "http://0.0.0.0", "address to listen on"),
        ("MLFLOW_PORT", "70000", "from 1 to 65535"),
        ("SIGN_IN", "mlflow", "give none or basic"),
        ("WORKERS", "0", "from 1 to 32"),
        ("WORKERS", "-1", "from 1 to 32"),
        ("WORKERS", "two", "from 1 to 32"),
        ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true", "no job runner"),
        ("MLFLOW_SERVER_ALLOWED_HOSTS", "a.example.com,https://b.example.com", "host names alone"),
        ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "mlflow.example.com", "https://mlflow.example.com"),
    ],
)
def test_a_wrong_value_is_refused_with_its_mend(name: str, value: str, mend: str) -> None:
    [problem] = problems(**{name: value})
    assert problem.startswith(name)
    assert value.split(",")[-1] in problem
    assert mend in problem


@pytest.mark.parametrize("name", settings.NOT_READ)
def test_a_variable_that_would_be_ignored_is_refused(name: str) -> None:
    [problem] = problems(**{name: "anything"})
    assert problem.startswith(f"{name} is set, but")


def test_rds_is_believed_unless_another_authority_is_named(tmp_path: Path) -> None:
    verified = GOOD | {"DATABASE_SSLMODE": "verify-full"}
    database, _ = settings.read(verified)
    assert database.authority == str(settings.RDS_CA)
    authority = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    database, _ = settings.read(verified | {"DATABASE_SSLROOTCERT": str(authority)})
    assert parse_qs(urlsplit(database.uri()).query)["sslrootcert"] == [str(authority)]
    # libpq would look at the certificate after all, and not at the name in it.
    database, _ = settings.read(verified | {"DATABASE_SSLMODE": "require"})
    assert "sslrootcert" not in database.uri()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_an_authority_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None) -> None:
    authority = tmp_path / "authority.pem"
    if content is not None:
        authority.write_text(content)
    [problem] = problems(DATABASE_SSLMODE="verify-full", DATABASE_SSLROOTCERT=str(authority))
    assert problem.startswith(f"DATABASE_SSLROOTCERT is '{authority}', which cannot be used (")
    assert problem.endswith(
        "name a PEM file with the authority that signed the database server's certificate."
    )


def test_the_password_is_in_no_message() -> None:
    told = "\n".join(problems(DATABASE_HOST="no good", WORKERS="none", DATABASE_USER=""))
    assert GOOD["DATABASE_PASSWORD"] not in told


def test_hosts_are_lower_case_and_their_pages_may_write() -> None:
    _, server = settings.read(
        GOOD | {"MLFLOW_SERVER_ALLOWED_HOSTS": "Mlflow-1X.elb.amazonaws.com, localhost:8080"}
    )
    assert server.allowed_hosts == ("mlflow-1x.elb.amazonaws.com", "localhost:8080")
    assert server.allowed_origins == (
        "https://mlflow-1x.elb.amazonaws.com",
        "http://mlflow-1x.elb.amazonaws.com",
        "https://localhost:8080",
        "http://localhost:8080",
    )


def test_a_host_pattern_admits_no_foreign_page() -> None:
    _, server = settings.read(GOOD | {"MLFLOW_SERVER_ALLOWED_HOSTS": "*.example.com,*"})
    assert server.allowed_origins == ()


def test_given_origins_win() -> None:
    _, server = settings.read(
        GOOD
        | {
            "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example.com",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://mlflow.example.com",
        }
    )
    assert server.allowed_origins == ("https://mlflow.example.com",)


def test_mysql() -> None:
    database, _ = settings.read(GOOD | {"DATABASE_ENGINE": "mysql"})
    assert database.port == 3306
    assert database.uri() == "mysql+pymysql://mlflow_admin@db.internal:3306/mlflow?charset=utf8mb4"
    [problem] = problems(DATABASE_ENGINE="oracle")
    assert "postgresql or mysql" in problem


def test_what_migrate_reads_is_checked() -> None:
    _, how = settings.read_migration(GOOD)
    assert how == settings.Migration("", "", False, "", "", "", "", owner="mlflow_admin")
    wrong = {
        "DATABASE_INSTANCE": "arn:aws:rds:x",
        "DATABASE_CLUSTER": "my cluster",
        "MIGRATE_WITHOUT_SNAPSHOT": "yes",
        "ALLOW_BREAKING_MIGRATION": "all of them",
    }
    with pytest.raises(settings.SettingsError) as error:
        settings.read_migration(GOOD | wrong)
    assert [problem.split()[0] for problem in error.value.problems] == list(wrong)
