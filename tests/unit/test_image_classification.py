"""Which statements of a migration an older server can live with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "mlflow_image"))

from classification import Column, Table, classify, foreign_key, widens
from history import Entry, kinds

BEFORE = {
    "runs": Table(
        columns={
            "run_uuid": Column("VARCHAR(32)", nullable=False, default=False),
            "name": Column("VARCHAR(250)", nullable=True, default=False),
            "step": Column("INTEGER", nullable=False, default=True),
        },
        unique=frozenset({"runs_name"}),
        indexes=frozenset({"runs_step"}),
        foreign_keys={"fk_old": foreign_key(["experiment_id"], "experiments", ["experiment_id"])},
    ),
    "experiments": Table(),
}
ADD = "ALTER TABLE runs ADD COLUMN fresh INTEGER"
KEY = "FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)"


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE fresh ( id INTEGER NOT NULL, PRIMARY KEY (id) )",
        "CREATE TABLE fresh (id INTEGER); CREATE UNIQUE INDEX i ON fresh (id); DROP TABLE fresh",
        "CREATE TABLE fresh (id INTEGER); INSERT INTO fresh (id) VALUES (1); UPDATE fresh SET id=2",
        "CREATE TABLE fresh (id INTEGER); CREATE TRIGGER t BEFORE UPDATE ON fresh FOR EACH ROW EXECUTE FUNCTION f()",
        ADD,
        "ALTER TABLE runs ADD COLUMN fresh VARCHAR(8) DEFAULT 'PRIMARY' NOT NULL",
        f"{ADD}; ALTER TABLE runs ADD CONSTRAINT fk FOREIGN KEY(fresh) REFERENCES experiments (experiment_id)",
        f"{ADD}; UPDATE runs SET fresh=1 WHERE runs.fresh IS NULL; ALTER TABLE runs ALTER COLUMN fresh SET NOT NULL",
        f"{ADD}; ALTER TABLE runs DROP COLUMN fresh",
        "CREATE INDEX i ON runs (name) WHERE name IS NOT NULL",
        "DROP INDEX runs_step",
        "DROP INDEX runs_step ON runs",
        "ALTER TABLE runs ALTER COLUMN name TYPE VARCHAR(500)",
        "ALTER TABLE runs ALTER COLUMN name TYPE TEXT",
        "ALTER TABLE runs ALTER COLUMN step TYPE BIGINT",
        "ALTER TABLE runs ALTER COLUMN run_uuid SET NOT NULL",
        "ALTER TABLE runs ALTER COLUMN run_uuid DROP NOT NULL",
        "ALTER TABLE runs ALTER COLUMN step SET DEFAULT 0",
        "ALTER TABLE `runs` MODIFY `name` MEDIUMTEXT NULL",
        "ALTER TABLE runs MODIFY step BIGINT NOT NULL DEFAULT '0'",
        f"ALTER TABLE runs DROP CONSTRAINT fk_old; ALTER TABLE runs ADD CONSTRAINT fk {KEY} ON DELETE CASCADE",
        f"ALTER TABLE runs DROP FOREIGN KEY fk_old; ALTER TABLE runs ADD CONSTRAINT fk_old {KEY}",
        "SHOW CREATE TABLE runs",
    ],
)
def test_additive(sql: str) -> None:
    found = classify(sql.split(";"), BEFORE)
    assert (found.kind, found.breaks) == ("additive", set()), found.reasons


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE runs ADD COLUMN b INTEGER NOT NULL DEFAULT 0, DROP COLUMN name",
        "ALTER TABLE runs ADD COLUMN b INTEGER, ALTER COLUMN name TYPE SMALLINT",
        "SELECT 1; DROP TABLE runs",
        "CREATE TABLE x (a INT); DROP TABLE runs",
        "ALTER TABLE runs ADD COLUMN b VARCHAR(9) DEFAULT 'a;b, c'; DROP TABLE runs",
    ],
)
def test_several_changes_in_one_statement_are_not_taken_for_the_first_of_them(sql: str) -> None:
    found = classify([sql], BEFORE)
    assert found.kind == "breaking"
    assert "several changes in one" in found.reasons[0]


def test_commas_and_semicolons_within_a_value_are_no_second_change() -> None:
    sql = "ALTER TABLE runs ADD COLUMN b VARCHAR(9) DEFAULT 'a;b, (c'"
    assert classify([sql, "ALTER TABLE runs ADD COLUMN d DECIMAL(9, 2)"], BEFORE).kind == "additive"


def test_text_without_a_bound_never_widens_to_one_with_a_bound() -> None:
    assert not widens("TEXT", "VARCHAR(20000)")
    assert widens("TEXT", "MEDIUMTEXT")


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("DROP TABLE runs", "drops a table"),
        ("ALTER TABLE runs DROP COLUMN name", "drops a column"),
        ("ALTER TABLE runs RENAME name TO title", "renames"),
        ("ALTER TABLE runs RENAME TO jobs", "renames"),
        ("ALTER TABLE runs CHANGE name title VARCHAR(250) NULL", "renames"),
        ("ALTER TABLE runs ADD COLUMN fresh INTEGER NOT NULL", "does not write"),
        ("ALTER TABLE runs ADD COLUMN fresh INTEGER DEFAULT 1 UNIQUE", "constrains"),
        ("ALTER TABLE runs ALTER COLUMN name TYPE VARCHAR(100)", "not certain to hold"),
        ("ALTER TABLE runs ALTER COLUMN step TYPE BIGINT USING step::BIGINT", "no form known"),
        ("ALTER TABLE runs MODIFY step SMALLINT NOT NULL DEFAULT '0'", "not certain to hold"),
        ("ALTER TABLE runs MODIFY step INTEGER NOT NULL", "may leave out"),
        ("ALTER TABLE runs MODIFY name VARCHAR(250) NOT NULL", "refuses rows without"),
        ("ALTER TABLE runs ALTER COLUMN name SET NOT NULL", "refuses rows without"),
        ("ALTER TABLE runs ALTER COLUMN step DROP DEFAULT", "may leave out"),
        ("CREATE UNIQUE INDEX i ON runs (name)", "refuses rows"),
        ("ALTER TABLE runs ADD CONSTRAINT u UNIQUE (name)", "refuses rows"),
        ("ALTER TABLE runs ADD CHECK (step > 0)", "refuses rows"),
        (f"ALTER TABLE runs ADD CONSTRAINT fk {KEY}", "refuses rows"),
        (
            "ALTER TABLE runs DROP CONSTRAINT fk_old; ALTER TABLE runs ADD CONSTRAINT fk "
            "FOREIGN KEY(name) REFERENCES experiments (name)",
            "refuses rows",
        ),
        ("DROP INDEX runs_name", "takes to be impossible"),
        ("DROP INDEX nobody_knows", "takes to be impossible"),
        ("ALTER TABLE runs DROP CONSTRAINT runs_name", "takes to be impossible"),
        ("ALTER TABLE runs DROP PRIMARY KEY", "takes to be impossible"),
        ("UPDATE runs SET name='x'", "changes rows"),
        (f"{ADD}; UPDATE runs SET fresh=1, name='x' WHERE name IS NULL", "changes rows"),
        ("DELETE FROM runs WHERE name IS NULL", "changes rows"),
        ("INSERT INTO runs (name) VALUES ('x')", "changes rows"),
        ("SELECT name FROM runs", "one by one"),
        ("CREATE OR REPLACE FUNCTION known() RETURNS TRIGGER AS $$ BEGIN END $$", "replaces a function"),
        ("CREATE TRIGGER t BEFORE UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION f()", "runs on what"),
        ("VACUUM", "no form known"),
    ],
)
def test_breaking(sql: str, why: str) -> None:
    found = classify(sql.split(";"), BEFORE, frozenset({"known"}))
    assert found.kind == "breaking"
    [reason] = found.reasons
    assert why in reason


def test_a_new_table_that_holds_on_to_old_rows_says_so() -> None:
    found = classify(
        ["CREATE TABLE fresh (run VARCHAR(32), FOREIGN KEY(run) REFERENCES runs (run_uuid))"], BEFORE
    )
    assert found.kind == "additive"
    assert found.reasons == [
        "rows of runs to which the new table fresh refers cannot be deleted by an older server"
    ]
    cascade = (
        "CREATE TABLE fresh (run VARCHAR(32), FOREIGN KEY(run) REFERENCES runs (run_uuid) ON DELETE CASCADE)"
    )
    assert classify([cascade], BEFORE).reasons == []


@pytest.mark.parametrize(
    ("old", "new", "wider"),
    [
        ("VARCHAR(32)", "VARCHAR(32)", True),
        ('VARCHAR(500) COLLATE "utf8mb4_general_ci"', "VARCHAR(8000)", True),
        ("VARCHAR(20000)", "TEXT", False),
        ("TEXT", "MEDIUMTEXT", True),
        ("TEXT", "VARCHAR(8000)", False),
        ("INTEGER(11)", "BIGINT", True),
        ("BIGINT(20)", "INTEGER", False),
        ("REAL", "DOUBLE PRECISION", True),
        ("DOUBLE PRECISION", "FLOAT(53)", True),
        ("DOUBLE", "FLOAT", False),
        ("TINYINT(1)", "BOOL", True),
        ("INTEGER", "VARCHAR(20)", False),
        ("JSON", "JSON", True),
    ],
)
def test_widening(old: str, new: str, wider: bool) -> None:
    assert widens(old, new) is wider


def test_what_happens_to_a_table_is_nothing_to_a_server_older_than_it() -> None:
    made = Entry("a", None, frozenset({"fresh"}), frozenset(), ())
    broke = Entry("b", "a", frozenset(), frozenset({"fresh"}), ("drops a column",))
    assert [kind for _, kind in kinds([made, broke])] == ["additive", "additive"]
    assert [kind for _, kind in kinds([broke])] == ["breaking"]
