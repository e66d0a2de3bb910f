"""Runs in the image's build stage: which modules that were taken out are named in imports of files that are left.

Every import counts, wherever it stands in a file, because much of MLflow is imported only when a request asks for it.
"""

import json
import re
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

IMAGE = Path("/image")
IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)
FROM = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#;]*)", re.MULTILINE)


def modules(library: Path) -> dict[str, Path]:
    """Modules below a folder by their names; other installations in it are not its own."""
    found = {}
    for path in library.rglob("*"):
        *packages, file = path.relative_to(library).parts
        if packages[:1] == ["lib-dynload"]:
            packages = []
        if path.suffix in (".py", ".so") and not {"site-packages", "dist-packages"} & set(packages):
            name = file.partition(".")[0]
            found[".".join(packages if name == "__init__" else [*packages, name])] = path
    return found


def imported(module: str, path: Path) -> set[str]:
    """The names that a file imports, as far as they could be modules."""
    text = path.read_text(encoding="utf-8", errors="replace")
    names = {part.split()[0] for line in IMPORT.findall(text) for part in line.split(",") if part.split()}
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for dots, origin, what in FROM.findall(text):
        base = package[: len(package) - len(dots) + 1] if dots else []
        origin = ".".join([*base, *filter(None, [origin])])
        names.add(origin)
        names |= {
            f"{origin}.{part.split()[0]}"
            for part in re.sub(r"[()\\]|#.*", " ", what).split(",")
            if part.split()
        }
    return names


libraries = [Path(sysconfig.get_path("stdlib")), *Path("/opt/venv/lib").glob("python3.*/site-packages")]
left: dict[str, Path] = {}
everything: dict[str, Path] = {}
for library in libraries:
    everything |= modules(library)
    left |= modules(IMAGE / library.relative_to("/"))
taken_out = everything.keys() - left.keys()
missed = defaultdict(set)
for module, path in left.items():
    if path.suffix == ".py":
        for name in imported(module, path) & taken_out:
            missed[name].add(module)
json.dump(
    {
        "left": len(left),
        "taken out": sorted(taken_out),
        "missed": {name: sorted(who) for name, who in missed.items()},
    },
    sys.stdout,
)
