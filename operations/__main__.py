"""`make releases`, `make rollback`, `make restore`, `make client`; and `token`, `password`, the pipeline's."""

from __future__ import annotations

import argparse
import os
import sys

from operations.aws import CannotOperate
from operations.client import client_settings
from operations.releases import Pipeline, show
from operations.restore import restore
from operations.rollback import SHORTEST_COMMIT, Rollback
from operations.tokens import password, token
from stages.settings import SETTINGS_FILE, SettingsError, load_settings

CANNOT = 2
INTERRUPTED = 130
ENVIRONMENTS = ("dev", "staging", "prod")

EXAMPLES = """\
examples:
  python -m operations releases
      every environment: what serves, what was released, what it can go back to
  python -m operations rollback --environment prod
      prod goes back to the release before the one that serves; asks first
  python -m operations rollback --environment prod --to 1a2b3c4 --yes
      prod goes back to that commit, without asking
  python -m operations restore --environment prod --snapshot mlflow-prod-database-0584bdc529eb-20261121-120000
      commits the setting whose release switches prod to a database made from that snapshot; the one in use is kept

Credentials are those of the tooling account, as the AWS CLI has them (AWS_PROFILE, aws sso login). `make releases`,
`make rollback` and `make restore` say the same with ENV=, TO=, SNAPSHOT= and YES=yes; ON=rehearsal takes
the rehearsed pipeline instead of AWS's.

exit status: 0 done; 1 a rollback was begun and failed; 2 it cannot be done, nothing was changed; 3 a breaking migration
forbids it, nothing was changed; 130 interrupted (what CodePipeline has begun goes on)
"""


def main() -> int:
    """The exit status; `--help` explains it."""
    parser = argparse.ArgumentParser(
        prog="python -m operations",
        description="Look at the platform's releases, and take an environment back to an earlier one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    releases = commands.add_parser(
        "releases",
        help="list what was released to each environment",
        description="For each environment: what serves, what was released, and how it can be gone back to.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    releases.add_argument("--environment", choices=ENVIRONMENTS, help="this one only")
    rollback = commands.add_parser(
        "rollback",
        help="take an environment back to an earlier release",
        description="Show what is deployed and what it goes back to, check that no breaking migration lies between, ask,"
        " do it, and follow it to its end.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rollback.add_argument("--environment", choices=ENVIRONMENTS, required=True, help="which one goes back")
    rollback.add_argument(
        "--to",
        metavar="COMMIT",
        help=f"its first {SHORTEST_COMMIT} digits or more; without it, the release before the one that serves",
    )
    rollback.add_argument("--yes", action="store_true", help="do not ask")
    restoring = commands.add_parser("restore", help="prepare the release that restores a database")
    restoring.add_argument("--environment", choices=ENVIRONMENTS, required=True)
    restoring.add_argument(
        "--snapshot",
        required=True,
        help="its identifier; a refused rollback names it, `aws rds describe-db-snapshots` lists them",
    )
    restoring.add_argument("--yes", action="store_true", help="do not ask")
    client = commands.add_parser("client", help="print what a client sets, ready to paste")
    client.add_argument("--environment", choices=ENVIRONMENTS, required=True)
    commands.add_parser("token", help="print a machine's token; TOKEN_ISSUER and others say whose")
    commands.add_parser("password", help="print the password of the user whose secret USER_SECRET_ARN names")
    options = parser.parse_args()
    try:
        if options.command == "token":
            print(token(os.environ))
            return 0
        if options.command == "password":
            print(password(os.environ))
            return 0
        if options.command == "restore":
            restore(SETTINGS_FILE, options.environment, options.snapshot, yes=options.yes)
            return 0
        settings = load_settings()
        if options.command == "client":
            print(client_settings(settings, options.environment))
            return 0
        if options.command == "rollback":
            return Rollback(settings, options.environment).run(options.to, yes=options.yes)
        pipeline = Pipeline(settings)
        wanted = [options.environment] if options.environment else ENVIRONMENTS
        print("\n\n".join(show(pipeline.history(environment)) for environment in wanted))
    except (SettingsError, CannotOperate) as problem:
        print(problem, file=sys.stderr)
        return CANNOT
    except KeyboardInterrupt:
        print("\nInterrupted. What CodePipeline has begun goes on there.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
