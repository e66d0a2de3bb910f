"""The users that the server keeps by itself, when MLflow's own users sign in (SIGN_IN=basic).

Their passwords come from Secrets Manager, and what stands there holds: a server that starts gives them to the database,
where MLflow keeps their hashes. So a password is rotated by putting another one into the secret and starting the tasks
anew, and an administrator who is locked out gets in again. This runs once, before the workers, and without MLflow.
"""

import database
import history
import sqlalchemy as sa
from passwords import ADMIN
from settings import Database, SignIn
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError
from werkzeug.security import check_password_hash, generate_password_hash

TABLE = sa.table(
    "users",
    sa.column("username", sa.String),
    sa.column("password_hash", sa.String),
    sa.column("is_admin", sa.Boolean),
)


def keep(connection: Connection, where: Database, sign_in: SignIn) -> None:
    """Give each of these users its password. Raises DatabaseError if their tables are not as this image needs them."""
    line = database.USERS
    found = database.current_revision(connection, line)
    history.check_servable(connection, where, database.image_revision(line), found, line)
    for user, password in sign_in.passwords.items():
        _keep(connection, user, password, user == ADMIN)


def _keep(connection: Connection, user: str, password: str, administers: bool) -> None:
    ours = TABLE.c.username == user
    with connection.begin():
        row = connection.execute(sa.select(TABLE).where(ours)).first()
    if row and row.is_admin == administers and check_password_hash(row.password_hash, password):
        return
    values = {"password_hash": generate_password_hash(password), "is_admin": administers}
    if not row:
        try:
            with connection.begin():
                connection.execute(TABLE.insert().values(username=user, **values))
            database.say(f"Made the user {user}.")
            return
        except IntegrityError:  # another task, which starts at the same time, was faster
            pass
    with connection.begin():
        connection.execute(TABLE.update().where(ours).values(**values))
    database.say(f"Gave the user {user} the password of the secret.")
