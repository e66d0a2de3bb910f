"""What the documents claim about the repository is so: links, commands, settings, controls, pinned actions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stages.settings import Environments, Settings

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ["*.md", "docs/**/*.md", ".github/**/*.md"]
DOCUMENTS = sorted(path for pattern in WRITTEN for path in ROOT.glob(pattern))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTROLS = ROOT / "docs" / "controls.md"
CAPABILITIES = {"P": 13, "D": 8, "N": 5, "S": 4, "C": 5, "O": 5, "M": 8}
"""How many capabilities each group of the controls page has; a row that is dropped must be missed."""

STATUSES = ("rehearsed", "synthesized", "not yet")
SOURCES = [
    "Makefile",
    "stages/*.py",
    "mlflow_image/*.py",
    "*_tests/*.py",
    "operations/*.py",
    "rehearsal/**/*.py",
]
OTHERS_MESSAGES = (
    "Acknowledge with 'AwsSolutions",  # cdk-nag
    "The S3 Bucket or bucket policy does not require requests to use SSL",
    "NodeVersionSupportWarning",  # the CDK
    "already exists",  # CloudFormation
    "Invalid Host header - possible DNS rebinding attack detected",  # MLflow
    "Cross-origin request blocked",
    "TEMPORARILY_UNAVAILABLE",
)
"""Messages of others that the pages below quote."""

QUOTING = ("troubleshooting.md", "rollback.md")
"""Pages on which code in bold, and code in the first column of a table, is a message."""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", read(path), flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(path: Path) -> Iterator[list[str]]:
    """The cells of every table row, headings and rules left out."""
    for line in read(path).splitlines():
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if line.startswith("| ") and not set(line) <= set("|- "):
            yield cells


def broken_links(path: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    return broken


def missing_targets(text: str) -> set[str]:
    """Names of `make NAME` in code that the Makefile has no target for."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    named = re.findall(
        r"(?:^[ \t]+|`|run: )make ((?:[A-Z]+=\S+ )*[a-z][a-z-]*(?: [a-z-]+)*)", text, flags=re.MULTILINE
    )
    words = {word for command in named for word in command.split() if "=" not in word}
    return words - targets


def missing_evidence(cell: str) -> list[str]:
    """Files and tests named in a cell of the controls page that are not there."""
    missing = []
    for named in re.findall(r"`([^`]+)`", cell):
        file, _, test = named.partition("::")
        path = ROOT / file
        if not path.exists() or (test and f"def {test}(" not in read(path)):
            missing.append(named)
    return missing


def setting_keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a table; dev, staging and prod are one, NAME."""
    for key, field in table.model_fields.items():
        inner = [
            t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)
        ]
        nested = next((t for t in inner if issubclass(t, BaseModel)), None)
        dotted = f"{prefix}{'NAME' if table is Environments else key}"
        if nested is None:
            yield dotted
        else:
            yield from setting_keys(nested, f"{dotted}.")


def messages() -> list[str]:
    """What the pages that people search with a message in their hand quote as messages."""
    pages = [ROOT / "docs" / page for page in QUOTING]
    bold = [text for page in pages for text in re.findall(r"^\*\*(.+?)\*\*", read(page), flags=re.MULTILINE)]
    cells = [row[0] for page in pages for row in table_rows(page)]
    return [code for text in (*bold, *cells) for code in re.findall(r"`([^`]+)`", text) if " " in code]


def uses(node: Any) -> Iterator[str]:
    """Every action that a workflow uses."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "uses":
                yield value
            else:
                yield from uses(value)
    elif isinstance(node, list):
        for item in node:
            yield from uses(item)


CONTROL_ROWS = [row for row in table_rows(CONTROLS) if re.fullmatch(r"[A-Z]\d+", row[0])]


def test_there_is_something_to_check() -> None:
    assert {"README.md", "docs/controls.md", "CONTRIBUTING.md"} <= {name(path) for path in DOCUMENTS}
    assert WORKFLOWS
    assert anchors(ROOT / "README.md") >= {"limits", "set-it-up-on-aws"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    assert not broken_links(document)


@pytest.mark.parametrize("document", [*DOCUMENTS, *WORKFLOWS], ids=name)
def test_every_make_command_has_a_target(document: Path) -> None:
    assert not missing_targets(read(document))


def test_every_make_target_is_explained() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):.*## ", read(ROOT / "Makefile"), flags=re.MULTILINE))
    told = " ".join(read(document) for document in DOCUMENTS)
    assert not {target for target in targets - {"help"} if not re.search(rf"make (\S+ )*{target}\b", told)}


def test_every_setting_is_explained_and_no_other() -> None:
    explained = [
        row[0].strip("`") for row in table_rows(ROOT / "docs" / "settings.md") if row[0].startswith("`")
    ]
    assert sorted(explained) == sorted(set(setting_keys(Settings)))


def test_every_capability_has_one_row() -> None:
    expected = [f"{group}{number}" for group, last in CAPABILITIES.items() for number in range(1, last + 1)]
    assert Counter(row[0] for row in CONTROL_ROWS) == Counter(expected)


@pytest.mark.parametrize("row", CONTROL_ROWS, ids=lambda row: str(row[0]))
def test_a_control_says_what_is_so(row: list[str]) -> None:
    _, _, where, shown_by, status = row
    assert status.startswith(STATUSES)
    assert not missing_evidence(where)
    assert not missing_evidence(shown_by)
    if not status.startswith("not yet"):
        assert "`" in where, "names no file"
        assert re.search(r"`tests/", shown_by), "names no test"


@pytest.mark.parametrize("message", messages())
def test_quoted_messages_are_real(message: str) -> None:
    sources = "\n".join(read(path) for pattern in SOURCES for path in sorted(ROOT.glob(pattern)))
    real = re.sub(r'["\']\s*\n\s*f?["\']|`', "", sources) + "\n".join(OTHERS_MESSAGES)
    # Capitals, numbers and dots stand for what differs; the rest must be in the source word for word.
    parts = [part.strip(" .,:;()'") for part in re.split(r"\b[A-Z]+\b|[…<>\d]+", message)]
    assert max(map(len, parts)) > 6, "quotes too little to be checked"
    assert not [part for part in parts if len(part) > 3 and part not in real]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    actions = list(uses(yaml.safe_load(read(workflow))))
    assert actions
    assert not [action for action in actions if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action)]
    lines = [line for line in read(workflow).splitlines() if "uses:" in line]
    assert not [line for line in lines if not re.search(r"@[0-9a-f]{40} # v\d", line)], (
        "say which version it is"
    )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_workflows_may_only_read_and_end(workflow: Path) -> None:
    content = yaml.safe_load(read(workflow))
    assert content["permissions"] == {"contents": "read"}
    assert not [
        job for job, steps in content["jobs"].items() if not 0 < steps.get("timeout-minutes", 0) <= 90
    ]
    assert not [job for job, steps in content["jobs"].items() if "permissions" in steps]
