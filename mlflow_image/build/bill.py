"""The image's bill of materials (CycloneDX 1.6) and the list of its licences, made while the image is built.

    python bill.py TOOLS VENV ROOT

TOOLS is the environment that cyclonedx-bom is in; it writes down the Python packages of VENV from their own records. Python
and Debian's packages are added from what lean.py left in ROOT. A licence that is not on the list below stops the build.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from lean import STATUS, set_times

PLACE = "usr/share/sbom"
BILL, LICENCES = "mlflow.cdx.json", "licences.txt"

# What may be served over a network and given to others with its source unchanged. LGPL: psycopg, loaded as it is.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "LGPL-3.0-only", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
    "Python-2.0", "Zlib",
    "Apache Software License", "BSD License", "Mozilla Public License 2.0 (MPL 2.0)",  # as classifiers say it
}  # fmt: skip
# What these packages do not say where tools look; their files do.
DECLARED_ELSEWHERE = {"huey": "MIT", "protobuf": "BSD-3-Clause"}


def python_packages(tools: Path, venv: Path) -> dict[str, Any]:
    """The bill of a virtual environment, the same for the same packages."""
    command = [
        str(tools / "bin/cyclonedx-py"),
        "environment",
        "--output-reproducible",
        "--sv",
        "1.6",
        "--of",
        "JSON",
    ]
    told = subprocess.run([*command, str(venv / "bin/python")], stdout=subprocess.PIPE, text=True, check=True)
    bill: dict[str, Any] = json.loads(told.stdout)
    for component in bill["components"]:
        if licence := DECLARED_ELSEWHERE.get(component["name"].lower()):
            component.setdefault("licenses", [{"license": {"id": licence}}])
    return bill


def system_packages(root: Path) -> list[dict[str, Any]]:
    """Python itself, and Debian's packages of which the image holds a part."""
    version = platform.python_version()
    components = [
        {
            "type": "application",
            "bom-ref": f"cpython@{version}",
            "name": "cpython",
            "version": version,
            "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
            "purl": f"pkg:generic/cpython@{version}",
            "licenses": [{"license": {"id": "PSF-2.0"}}],
        }
    ]
    for stanza in (root / STATUS).read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", stanza, flags=re.MULTILINE))
        if fields:
            name, version = fields["Package"], fields["Version"]
            where = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={fields['Architecture']}"
            components.append(
                {"type": "library", "bom-ref": where, "name": name, "version": version, "purl": where}
            )
    return components


def licences(component: dict[str, Any]) -> list[str]:
    """The licences that a component names, classifiers without their prefix."""
    told = component.get("licenses", [])
    names = [
        entry.get("expression") or entry["license"].get("id") or entry["license"]["name"] for entry in told
    ]
    return [name.removeprefix("License :: OSI Approved :: ") for name in names]


def refused(component: dict[str, Any]) -> str | None:
    """Why a Python package may not be in the image, if it may not. Of several licences by OR, one is enough."""
    names = licences(component)
    if not names:
        return "names no licence: read its files, and add it to DECLARED_ELSEWHERE"
    for name in names:
        choices = [choice.split(" AND ") for choice in name.split(" OR ")]
        if not any(ALLOWED.issuperset(choice) for choice in choices):
            return f"is under {name}: leave it out, or add it to ALLOWED once somebody may say so"
    return None


def main(arguments: list[str]) -> int:
    tools, venv, root = map(Path, arguments)
    bill = python_packages(tools, venv)
    problems = [(component["name"], why) for component in bill["components"] if (why := refused(component))]
    if problems:
        for name, why in problems:
            print(f"mlflow_image/build/bill.py: {name} {why}.", file=sys.stderr)
        return 1
    lines = [f"{part['name']} {part['version']}: {', '.join(licences(part))}" for part in bill["components"]]
    bill["components"] += system_packages(root)
    (root / PLACE).mkdir(parents=True)
    (root / PLACE / BILL).write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (root / PLACE / LICENCES).write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    set_times(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
