"""What the image holds: the server's packages, Python, the system's libraries that these load, and nothing else.

    python lean.py VENV ROOT
    python lean.py --compile FOLDER

Runs while the image is built, in the base image, as its Python. ROOT becomes the whole file system: no shell, no package
manager, no pip, no compiler. What is taken out of packages is what no server opens; the lists below say why.

The same input gives the same bytes: names in order, one moment for all files, byte code without the time of its source.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

UID = 10001
MOMENT = 315532800  # 1980-01-01, the first day that a zip file can tell
ELF = b"\x7fELF"

UNUSED_FOLDERS = {
    "__pycache__",  # made anew, for this very place
    "tests",
    "test",
}
UNUSED_ENDINGS = {
    ".a", ".c", ".cpp", ".h", ".hpp", ".pxd", ".pyx",  # for compilers
    ".pyi",  # for type checkers
    ".map",  # for the debugger of a browser
}  # fmt: skip
UNUSED_OF_PACKAGES = (
    "numpy/distutils",
    "numpy/f2py",  # for compilers
    "*.dist-info/RECORD",  # it lists the files before any were taken out
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
)
UNUSED_OF_PYTHON = (
    "config-*", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "tkinter", "turtle.py",
    "turtledemo", "venv", "sitecustomize.py", "lib-dynload/_test*", "lib-dynload/_tkinter*", "lib-dynload/_curses*",
    "lib-dynload/readline*", "lib-dynload/_dbm*", "lib-dynload/_gdbm*", "lib-dynload/nis*",
)  # fmt: skip
# The AWS services that the image calls: artifacts, rotated passwords, snapshots, roles; the gateway calls models.
AWS_SERVICES = {"bedrock-runtime", "rds", "s3", "secretsmanager", "sts"}

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
SYSTEM_FILES = (
    CERTIFICATES,
    "etc/ld.so.conf",
    "etc/ld.so.conf.d",
    "etc/nsswitch.conf",  # without it, DNS is asked for localhost before /etc/hosts is
    "etc/os-release",
    "etc/ssl/openssl.cnf",
    "usr/lib/os-release",
    "usr/lib/ssl/openssl.cnf",
    "usr/share/zoneinfo",  # for who sets TZ
)
# Libraries that others load by their names while they run, so that ldd does not tell of them: DNS, ends of threads.
LOADED_BY_NAME = ("libnss_dns.so.2", "libnss_files.so.2", "libgcc_s.so.1")
STATUS = "var/lib/dpkg/status"


def trim_packages(site: Path) -> None:
    """Take out of a site-packages folder what no server opens."""
    _trim(site)
    for pattern in UNUSED_OF_PACKAGES:
        for path in sorted(site.glob(pattern)):
            _remove(path)
    for service in sorted((site / "botocore/data").iterdir()):
        if service.is_dir() and service.name not in AWS_SERVICES:
            _remove(service)
    for program in ("pip", "setuptools", "wheel"):
        assert not (site / program).exists(), f"{program} must not be among the server's packages"


def copy_python(root: Path) -> Path:
    """Copy the interpreter and its library into ROOT, and say where the library is."""
    program = Path(os.path.realpath(sys.executable))
    _copy(program, root)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, _inside(root, library), symlinks=True, ignore=_unused_of_python(library))
    _trim(_inside(root, library))
    return _inside(root, library)


def copy_libraries(root: Path) -> set[Path]:
    """Copy what the programs and libraries in ROOT load from outside of it; returns the files as the base has them."""
    # In Debian /lib and /lib64 are links into /usr, and programs name their loader by them.
    for name in ("bin", "lib", "lib64", "sbin"):
        if (link := Path("/", name)).is_symlink():
            (root / name).symlink_to(link.readlink())
            (root / link.readlink()).mkdir(parents=True, exist_ok=True)
    found: set[Path] = set()
    for binary in sorted(_binaries(root)):
        told = subprocess.run(["ldd", str(binary)], capture_output=True, text=True).stdout
        for place in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", told, flags=re.MULTILINE):
            if root not in Path(place).resolve().parents:
                found.add(Path(place))
    [libc] = {path.resolve() for path in found if path.name.startswith("libc.so.")}
    found |= {path for name in LOADED_BY_NAME if (path := libc.parent / name).exists()}
    for library in sorted(found):
        _copy(library, root)
    return {path.resolve() for path in found}


def copy_system(root: Path, files: set[Path]) -> None:
    """Certificates, names of users, the release, and Debian's record of the packages that `files` belong to."""
    for name in SYSTEM_FILES:
        source = Path("/", name)
        if source.is_dir():
            shutil.copytree(source, root / name, symlinks=True, dirs_exist_ok=True)
        elif source.exists():
            _copy(source, root)
    # Where libraries are besides the usual places: the official image has Python's own in /usr/local/lib.
    subprocess.run(["ldconfig", "-X", "-r", str(root)], check=True)
    shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)
    # OpenSSL's own place; what uses no bundle of its own looks there.
    (root / "usr/lib/ssl").mkdir(parents=True, exist_ok=True)
    (root / "usr/lib/ssl/cert.pem").symlink_to(f"/{CERTIFICATES}")
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/:/none\nmlflow:x:{UID}:{UID}:MLflow:/tmp:/none\n")
    (root / "etc/group").write_text(f"root:x:0:\nmlflow:x:{UID}:\n")
    _write_status(root, files | {Path("/", CERTIFICATES)})
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)


def compile_all(folder: Path, inside: Path) -> None:
    """Byte code that is never compared with its source. One process: several give other bytes for the same source."""
    done = compileall.compile_dir(
        folder,
        quiet=2,
        stripdir=str(folder),
        prependdir=str(inside),
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        print(f"{inside}: some files have no byte code", file=sys.stderr)


def set_times(root: Path) -> None:
    """One moment for everything."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*files, *folders):
            os.utime(Path(folder, name), (MOMENT, MOMENT), follow_symlinks=False)
    os.utime(root, (MOMENT, MOMENT))


def main(arguments: list[str]) -> int:
    if arguments[0] == "--compile":
        compile_all(Path(arguments[1]), Path(arguments[1]))
        set_times(Path(arguments[1]))
        return 0
    venv, root = Path(arguments[0]), Path(arguments[1])
    target = _inside(root, venv)
    # Its programs are for people who have a shell.
    shutil.copytree(venv, target, symlinks=True, ignore=shutil.ignore_patterns("bin"))
    (target / "bin").mkdir()
    (target / "bin/python").symlink_to(os.path.realpath(sys.executable))
    [site] = target.glob("lib/python3.*/site-packages")
    trim_packages(site)
    library = copy_python(root)
    copy_system(root, copy_libraries(root))
    for folder in (site, library):
        compile_all(folder, Path("/", folder.relative_to(root)))
    set_times(root)
    return 0


def _trim(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if (path.is_dir() and path.name in UNUSED_FOLDERS) or path.suffix in UNUSED_ENDINGS:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unused_of_python(library: Path) -> Callable[[str, list[str]], list[str]]:
    unused = {path for pattern in UNUSED_OF_PYTHON for path in library.glob(pattern)}
    return lambda folder, names: [name for name in names if Path(folder, name) in unused]


def _binaries(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == ELF:
                    yield path


def _copy(source: Path, root: Path) -> None:
    """Copy a file with the links that lead to it. Links between folders are ROOT's already."""
    while source.is_symlink():
        link = _inside(root, source.parent.resolve() / source.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(source.readlink())
        source = source.parent.resolve() / source.readlink()
    place = _inside(root, source.parent.resolve() / source.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        shutil.copy2(source, place)


def _inside(root: Path, path: Path) -> Path:
    return root / path.as_posix().lstrip("/")


def _write_status(root: Path, files: set[Path]) -> None:
    """Scanners read from it which versions of Debian's packages there are; it names those of which something is left."""
    owners = set()
    for path in sorted(files):
        # The record has the name from before /lib became a link.
        names = [str(path), str(path).removeprefix("/usr")]
        for listing in Path("/var/lib/dpkg/info").glob("*.list"):
            if any(name in listing.read_text(encoding="utf-8").split("\n") for name in names):
                owners.add(listing.stem.partition(":")[0])
    stanzas = Path("/", STATUS).read_text(encoding="utf-8").split("\n\n")
    named = [(re.match(r"\s*Package: (\S+)", stanza), stanza) for stanza in stanzas]
    kept = [stanza for name, stanza in named if name and name[1] in owners]
    (root / STATUS).parent.mkdir(parents=True, exist_ok=True)
    (root / STATUS).write_text("\n\n".join(stanza.strip("\n") for stanza in kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
