"""What a migration does to a server of the release before it, told from the SQL that the migration runs.

Additive: that server goes on reading and writing as before. Breaking: it may fail, be refused a write, or read
something else than was written. Whatever is not recognised here counts as breaking, so a form of SQL that nobody
thought of asks a person instead of passing in silence.

Only the forms that SQLAlchemy and alembic write on PostgreSQL and MySQL are known; nothing here parses SQL in
general.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

ANYTHING = "*"  # stands for all tables, where a statement does not tell which


@dataclass(frozen=True)
class Column:
    """A column as the database has it. `type` is written as in SQL; `default` tells only whether there is one."""

    type: str
    nullable: bool
    default: bool


@dataclass(frozen=True)
class Table:
    """A table as it was before the migration."""

    columns: dict[str, Column] = field(default_factory=dict)
    unique: frozenset[str] = frozenset()  # names of unique indexes and constraints
    indexes: frozenset[str] = frozenset()  # names of the other indexes
    foreign_keys: dict[str, str] = field(default_factory=dict)  # name -> "column, ... -> table (column, ...)"


@dataclass
class Classification:
    """The verdict on one migration.

    `breaks` holds the old tables that a breaking statement concerns: to a server that is older than the table
    itself, what happened to it is nothing. Reasons come with an additive migration too, where it has a side effect
    worth knowing.
    """

    created: set[str] = field(default_factory=set)
    breaks: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return "breaking" if self.breaks else "additive"


def classify(
    statements: Iterable[str], before: dict[str, Table], functions: frozenset[str] = frozenset()
) -> Classification:
    """Judge a migration's statements, in their order, against the tables and functions as they were before it."""
    judge = _Judge(before, functions)
    for statement in statements:
        judge.hear(" ".join(statement.replace('"', "").replace("`", "").split()).rstrip(";"))
    if judge.read:
        judge.verdict.breaks |= judge.read
        judge.note(f"reads rows of {', '.join(sorted(judge.read))}, and may then change them one by one")
    return judge.verdict


def widens(old: str, new: str) -> bool:
    """Whether every value of the old SQL type fits the new one, and comes back as the same value."""
    (old_family, old_size), (new_family, new_size) = _size(old), _size(new)
    if "TEXT" in old.upper() and "TEXT" not in new.upper():
        return False  # PostgreSQL's TEXT has no bound
    return old_family == new_family and old_size <= new_size


def _size(sql_type: str) -> tuple[str, int]:
    name = re.sub(r" (COLLATE|CHARACTER SET|COMMENT) .*", "", sql_type.upper()).strip()
    name = re.sub(r"^((?:SMALL|BIG)?INT(?:EGER)?) ?\(\d+\)", r"\1", name)  # MySQL's display width
    if found := re.fullmatch(r"(?:VARCHAR|CHARACTER VARYING|NVARCHAR)\((\d+)\)", name):
        return "text", int(found[1])
    sizes = {
        # MySQL bounds its texts in bytes, of which utf8mb4 may take four for a character. PostgreSQL's TEXT has no
        # bound; the smaller one is right for both.
        "TEXT": ("text", 65_535 // 4),
        "MEDIUMTEXT": ("text", 2**24 // 4),
        "LONGTEXT": ("text", 2**32 // 4),
        "SMALLINT": ("integer", 2),
        "INT": ("integer", 4),
        "INTEGER": ("integer", 4),
        "BIGINT": ("integer", 8),
        "REAL": ("float", 4),
        "FLOAT": ("float", 4),
        "FLOAT(53)": ("float", 8),
        "DOUBLE": ("float", 8),
        "DOUBLE PRECISION": ("float", 8),
        "BOOL": ("boolean", 1),
        "BOOLEAN": ("boolean", 1),
        "TINYINT(1)": ("boolean", 1),
        "TINYINT": ("boolean", 1),
    }
    return sizes.get(name, (name, 0))


class _Judge:
    """Hears one statement after the other, and remembers what the migration itself made."""

    def __init__(self, before: dict[str, Table], functions: frozenset[str]) -> None:
        self.before = before
        self.functions = functions
        self.verdict = Classification()
        self.added: dict[tuple[str, str], bool] = {}  # (table, new column) -> may an old server leave it out
        self.read: set[str] = set()  # old tables whose rows the migration looks at
        self.dropped_keys: dict[str, set[str]] = {}  # table -> foreign keys dropped so far

    def hear(self, sql: str) -> None:
        if _is_several(sql):
            self.blame(sql, ANYTHING, "is several changes in one, which are not judged apart")
            return
        for pattern, judgement in _FORMS:
            if found := re.fullmatch(pattern, sql, re.IGNORECASE | re.DOTALL):
                judgement(self, sql, found)
                return
        self.blame(sql, ANYTHING, "is of no form known to be harmless")

    def blame(self, sql: str, table: str, why: str) -> None:
        """Call the migration breaking, unless it made the table itself."""
        if table in self.verdict.created:
            return
        self.verdict.breaks.add(table)
        shown = sql if len(sql) <= 200 else sql[:200] + " ..."
        self.note(f"{shown}: {why}")

    def note(self, reason: str) -> None:
        if reason not in self.verdict.reasons:
            self.verdict.reasons.append(reason)

    def table(self, name: str) -> Table:
        return self.before.get(name, Table())

    # Each of the following judges one form of statement.

    def create_table(self, sql: str, found: re.Match[str]) -> None:
        table = found["table"]
        if table in self.before:
            self.blame(sql, table, "makes a table that is there already")
            return
        self.verdict.created.add(table)
        for target, tail in re.findall(
            r"REFERENCES (\w+) ?\([^)]*\)((?: ON \w+ (?:CASCADE|SET \w+))*)", sql, re.I
        ):
            if "ON DELETE" not in tail.upper() and target not in self.verdict.created:
                self.note(
                    f"rows of {target} to which the new table {table} refers cannot be deleted by an older server"
                )

    def drop_table(self, sql: str, found: re.Match[str]) -> None:
        self.blame(sql, found["table"], "drops a table")

    def create_index(self, sql: str, found: re.Match[str]) -> None:
        if found["unique"]:
            self.blame(sql, found["table"], "refuses rows that were allowed before")

    def drop_index(self, sql: str, found: re.Match[str]) -> None:
        index = found["index"]
        owners = {name for name, table in self.before.items() if index in table.unique | table.indexes}
        for owner in owners or {ANYTHING}:
            if index not in self.table(owner).indexes:
                self.blame(sql, owner, "allows rows that an older server takes to be impossible")

    def add_column(self, sql: str, found: re.Match[str]) -> None:
        table, definition = found["table"], re.sub(r"'[^']*'", "''", found["definition"])
        required = re.search(r"\bNOT NULL\b", definition, re.I)
        given = re.search(r"\b(DEFAULT|GENERATED|AUTO_INCREMENT)\b", definition, re.I)
        self.added[table, found["column"]] = not required or bool(given)
        if required and not given:
            self.blame(sql, table, "wants a value that an older server does not write")
        if re.search(r"\b(UNIQUE|CHECK|PRIMARY)\b", definition, re.I):
            self.blame(sql, table, "constrains rows that an older server writes")

    def drop_column(self, sql: str, found: re.Match[str]) -> None:
        if (found["table"], found["column"]) not in self.added:
            self.blame(sql, found["table"], "drops a column that an older server reads and writes")

    def rename(self, sql: str, found: re.Match[str]) -> None:
        self.blame(sql, found["table"], "renames what an older server uses by its old name")

    def retype(self, sql: str, found: re.Match[str]) -> None:
        table, name = found["table"], found["column"]
        column = self.table(table).columns.get(name)
        if (table, name) in self.added:
            return
        if column is None or not widens(column.type, found["type"]):
            old = column.type if column else "an unknown type"
            self.blame(sql, table, f"changes {old} to a type that is not certain to hold every old value")

    def nullability(self, sql: str, found: re.Match[str]) -> None:
        if found["verb"].upper() == "SET":
            self._require(sql, found["table"], found["column"])

    def _require(self, sql: str, table: str, name: str) -> None:
        column = self.table(table).columns.get(name)
        if not self.added.get((table, name), False) and (column is None or column.nullable):
            self.blame(sql, table, "refuses rows without that value, which an older server may write")

    def default(self, sql: str, found: re.Match[str]) -> None:
        column = self.table(found["table"]).columns.get(found["column"])
        if found["verb"].upper() == "DROP" and not (column and column.nullable):
            self.blame(sql, found["table"], "wants a value that an older server may leave out")

    def modify(self, sql: str, found: re.Match[str]) -> None:
        """MySQL describes the whole column anew, so what is not said is taken away."""
        table, name, rest = found["table"], found["column"], found["rest"]
        new_type = re.split(r" (?:NOT NULL|NULL|DEFAULT|AUTO_INCREMENT|COMMENT)\b", rest, flags=re.I)[0]
        column = self.table(table).columns.get(name)
        if found["new"] and found["new"] != name:
            self.blame(sql, table, "renames what an older server uses by its old name")
        elif column and not widens(column.type, new_type):
            self.blame(
                sql, table, f"changes {column.type} to a type that is not certain to hold every old value"
            )
        if re.search(r"\bNOT NULL\b", rest, re.I):
            self._require(sql, table, name)
            if column and column.default and not re.search(r"\bDEFAULT\b", rest, re.I):
                self.blame(sql, table, "wants a value that an older server may leave out")

    def add_foreign_key(self, sql: str, found: re.Match[str]) -> None:
        table = found["table"]
        columns = [column.strip() for column in found["columns"].split(",")]
        key = foreign_key(columns, found["target"], found["targets"].split(","))
        # The same key put back differs in what happens on a deletion. A key over columns that an older server never
        # fills refuses none of its rows.
        if key in self.dropped_keys.get(table, set()):
            return
        if not all(self.added.get((table, column), False) for column in columns):
            self.blame(sql, table, "refuses rows that were allowed before")

    def add_constraint(self, sql: str, found: re.Match[str]) -> None:
        self.blame(sql, found["table"], "refuses rows that were allowed before")

    def drop_constraint(self, sql: str, found: re.Match[str]) -> None:
        table, name = found["table"], found["name"]
        key = self.table(table).foreign_keys.get(name)
        if key is None:
            self.blame(sql, table, "allows rows that an older server takes to be impossible")
        else:
            self.dropped_keys.setdefault(table, set()).add(key)

    def insert(self, sql: str, found: re.Match[str]) -> None:
        self.blame(sql, found["table"], "changes rows that an older server reads")

    def update(self, sql: str, found: re.Match[str]) -> None:
        table = found["table"]
        columns = re.findall(r"(?:^|, ?)(?:\w+\.)?(\w+) ?=", found["assignments"])
        if not columns or any((table, column) not in self.added for column in columns):
            self.blame(sql, table, "changes rows that an older server reads")

    def select(self, sql: str, _: re.Match[str]) -> None:
        """What a migration does with the rows it reads does not show on empty tables, so reading is suspect."""
        tables = re.findall(r"(?:FROM|JOIN) (\w+)", sql, re.I)
        self.read |= self.before.keys() & set(tables)

    def function(self, sql: str, found: re.Match[str]) -> None:
        """A function does nothing until a trigger calls it. One that is replaced would change what is called."""
        if found["name"] in self.functions:
            self.blame(sql, ANYTHING, "replaces a function")

    def trigger(self, sql: str, found: re.Match[str]) -> None:
        self.blame(sql, found["table"], "runs on what an older server writes")

    def nothing(self, _sql: str, _: re.Match[str]) -> None:
        """Says nothing about any row or table."""


def foreign_key(columns: Iterable[str], target: str, targets: Iterable[str]) -> str:
    """A foreign key in one writing, so that two can be compared."""
    return f"{', '.join(c.strip() for c in columns)} -> {target} ({', '.join(c.strip() for c in targets)})"


def _is_several(sql: str) -> bool:
    """Whether a statement is more than one, or alters a table in more than one way."""
    if re.match(r"CREATE (OR REPLACE )?(FUNCTION|TRIGGER)\b", sql, re.IGNORECASE):
        return False  # their bodies are judged with the tables they are for
    bare = re.sub(r"'(?:[^']|'')*'", "''", sql)
    while (flat := re.sub(r"\([^()]*\)", "", bare)) != bare:
        bare = flat
    return ";" in bare or (bare.upper().startswith("ALTER TABLE") and "," in bare)


_ALTER = r"ALTER TABLE (?P<table>\w+) "
_FORMS: list[tuple[str, Callable[[_Judge, str, re.Match[str]], None]]] = [
    (r"CREATE TABLE (?P<table>\w+) ?\(.*", _Judge.create_table),
    (r"DROP TABLE (?:IF EXISTS )?(?P<table>\w+)", _Judge.drop_table),
    (r"CREATE (?P<unique>UNIQUE )?INDEX (?P<index>\w+) ON (?P<table>\w+) ?\(.*", _Judge.create_index),
    (r"DROP INDEX (?P<index>\w+)(?: ON \w+)?", _Judge.drop_index),
    (_ALTER + r"ADD CONSTRAINT (?P<name>\w+) FOREIGN KEY ?\((?P<columns>[^)]*)\) REFERENCES "
     r"(?P<target>\w+) ?\((?P<targets>[^)]*)\).*", _Judge.add_foreign_key),
    (_ALTER + r"ADD (?:CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN)\b.*", _Judge.add_constraint),
    (_ALTER + r"ADD COLUMN (?P<column>\w+) (?P<definition>.*)", _Judge.add_column),
    (_ALTER + r"DROP (?:CONSTRAINT|FOREIGN KEY|CHECK) (?P<name>\w+)", _Judge.drop_constraint),
    (_ALTER + r"DROP (?P<name>PRIMARY KEY)", _Judge.drop_constraint),
    (_ALTER + r"DROP INDEX (?P<index>\w+)", _Judge.drop_index),
    (_ALTER + r"DROP COLUMN (?P<column>\w+)", _Judge.drop_column),
    (_ALTER + r"RENAME .*", _Judge.rename),
    (_ALTER + r"ALTER COLUMN (?P<column>\w+) TYPE (?P<type>[^:]+)", _Judge.retype),
    (_ALTER + r"ALTER COLUMN (?P<column>\w+) (?P<verb>SET|DROP) NOT NULL", _Judge.nullability),
    (_ALTER + r"ALTER (?:COLUMN )?(?P<column>\w+) (?P<verb>SET|DROP) DEFAULT.*", _Judge.default),
    (_ALTER + r"MODIFY (?P<column>\w+)(?P<new>) (?P<rest>.*)", _Judge.modify),
    (_ALTER + r"CHANGE (?P<column>\w+) (?P<new>\w+) (?P<rest>.*)", _Judge.modify),
    (r"INSERT INTO (?P<table>\w+).*", _Judge.insert),
    (r"DELETE FROM (?P<table>\w+).*", _Judge.insert),
    (r"UPDATE (?P<table>\w+) SET (?P<assignments>.*?)(?: WHERE .*)?", _Judge.update),
    (r"SELECT .*", _Judge.select),
    (r"CREATE (?:OR REPLACE )?FUNCTION (?P<name>\w+)\(.*", _Judge.function),
    (r"CREATE TRIGGER \w+ (?:BEFORE|AFTER) \w+ ON (?P<table>\w+) .*", _Judge.trigger),
    (r"(?:SHOW|DESCRIBE|SAVEPOINT|RELEASE) .*", _Judge.nothing),
]  # fmt: skip
