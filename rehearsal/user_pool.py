"""Cognito user pools of a rehearsed account: an OpenID Connect provider on loopback stands in for each.

It issues real signed tokens by the two grants that the platform uses, to the clients, callbacks and scopes that the
template declares. It knows no people: its page lets in whoever gives a name. Not rehearsed: passwords, second factors,
invitations, threat protection, refresh tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import BasicAuth, hdrs, web
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from pydantic import Field

from rehearsal.certificates import Certificates
from rehearsal.ports import LOOPBACK, PortBlock, listen
from rehearsal.properties import Properties, RefusedError, parse
from rehearsal.sign_in import AuthenticateCognitoConfig, AuthenticateOidcConfig

CODE_SECONDS = 300
PAGE = """<!doctype html><title>Sign in</title>
<h1>{pool}</h1><p>This page stands in for Cognito. It asks for no password: say who you are.</p>
<form method="post"><input name="username" autofocus required><button>Sign in</button></form>
"""


class UserPoolClientProperties(Properties):
    """AWS::Cognito::UserPoolClient."""

    user_pool_id: str
    allowed_o_auth_flows: list[str] = Field(default_factory=list, alias="AllowedOAuthFlows")
    allowed_o_auth_scopes: list[str] = Field(default_factory=list, alias="AllowedOAuthScopes")
    callback_urls: list[str] = Field(default_factory=list, alias="CallbackURLs")
    access_token_validity: int = 60
    """Minutes: the CDK writes them in this unit."""


class _Pool:
    """One pool: its key, its clients, and the server that answers for it."""

    def __init__(self, pool_id: str, port: int, directory: Path, certificates: Certificates) -> None:
        self.id = pool_id
        self.root = f"https://{LOOPBACK}:{port}"
        self.issuer = f"{self.root}/{pool_id}"
        self.clients: dict[str, UserPoolClientProperties] = {}
        self._port = port
        self._tls = certificates.for_server()
        self._key = self._own_key(directory / f"{pool_id}.pem")
        self._codes: dict[str, tuple[float, dict[str, str]]] = {}
        self._runner: web.AppRunner | None = None

    def _own_key(self, file: Path) -> RSAKey:
        """The key that signs; kept, so that a token outlives the host that issued it."""
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(0o600)
            file.write_bytes(RSAKey.generate_key(2048).as_pem(private=True))
        return RSAKey.import_key(file.read_bytes(), {"kid": self.id, "use": "sig", "alg": "RS256"})

    def secret(self, client: str) -> str:
        """A client's secret: the same as long as the pool's key is."""
        return hmac.new(self._key.as_pem(private=True), client.encode(), hashlib.sha256).hexdigest()

    async def open(self) -> None:
        application = web.Application()
        application.add_routes(
            [
                web.get(f"/{self.id}/.well-known/openid-configuration", self._discovery),
                web.get(f"/{self.id}/.well-known/jwks.json", self._keys),
                web.get("/oauth2/authorize", self._page),
                web.post("/oauth2/authorize", self._signed_in),
                web.post("/oauth2/token", self._token),
                web.get("/oauth2/userInfo", self._user),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, listen(self._port), ssl_context=self._tls).start()

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _discovery(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.root}/oauth2/authorize",
                "token_endpoint": f"{self.root}/oauth2/token",
                "userinfo_endpoint": f"{self.root}/oauth2/userInfo",
                "jwks_uri": f"{self.issuer}/.well-known/jwks.json",
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
            }
        )

    async def _keys(self, _request: web.Request) -> web.Response:
        return web.json_response(KeySet([self._key]).as_dict(private=False))

    def _asked(self, request: web.Request) -> tuple[str, str]:
        """Client and callback of a sign-in, if they belong together."""
        client, back = request.query.get("client_id", ""), request.query.get("redirect_uri", "")
        known = self.clients.get(client)
        if known is None or "code" not in known.allowed_o_auth_flows or back not in known.callback_urls:
            raise web.HTTPBadRequest(text=f"redirect_mismatch: {back} is no callback of client {client}")
        return client, back

    async def _page(self, request: web.Request) -> web.Response:
        self._asked(request)
        return web.Response(text=PAGE.format(pool=escape(self.id)), content_type="text/html")

    async def _signed_in(self, request: web.Request) -> web.Response:
        client, back = self._asked(request)
        name = str((await request.post())["username"])
        code = secrets.token_urlsafe(24)
        grant = {"client": client, "back": back, "name": name}
        self._codes[code] = (time.monotonic() + CODE_SECONDS, grant)
        query = urlencode({"code": code, "state": request.query.get("state", "")})
        raise web.HTTPFound(f"{back}?{query}")

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        client = self._authenticated(request)
        known = self.clients.get(client)
        if known is None:
            return web.json_response({"error": "invalid_client"}, status=401)
        match form.get("grant_type"):
            case "client_credentials" if "client_credentials" in known.allowed_o_auth_flows:
                asked = form["scope"].split() if "scope" in form else known.allowed_o_auth_scopes
                if not set(asked) <= set(known.allowed_o_auth_scopes):
                    return web.json_response({"error": "invalid_scope"}, status=400)
                return self._issued(client, known, client, " ".join(asked))
            case "authorization_code":
                until, grant = self._codes.pop(form.get("code", ""), (0.0, {}))
                if time.monotonic() < until and (grant["client"], grant["back"]) == (
                    client,
                    form.get("redirect_uri"),
                ):
                    return self._issued(client, known, grant["name"], "openid")
                return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"error": "unauthorized_client"}, status=400)

    def _authenticated(self, request: web.Request) -> str:
        try:
            given = BasicAuth.decode(request.headers.get(hdrs.AUTHORIZATION, ""))
        except ValueError:
            return ""
        good = given.login in self.clients and hmac.compare_digest(self.secret(given.login), given.password)
        return given.login if good else ""

    def _issued(self, client: str, known: UserPoolClientProperties, subject: str, scope: str) -> web.Response:
        now, seconds = int(time.time()), known.access_token_validity * 60
        common = {"iss": self.issuer, "sub": subject, "iat": now, "exp": now + seconds}
        access = {**common, "token_use": "access", "client_id": client, "scope": scope, "username": subject}
        answer = {"access_token": self.sign(access), "token_type": "Bearer", "expires_in": seconds}
        if scope == "openid":
            answer["id_token"] = self.sign({**common, "token_use": "id", "aud": client})
        return web.json_response(answer)

    def sign(self, claims: dict[str, Any]) -> str:
        """A token of this pool."""
        return jwt.encode({"alg": "RS256", "kid": self.id}, claims, self._key)

    async def _user(self, request: web.Request) -> web.Response:
        token = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, self._key, algorithms=["RS256"]).claims
        except Exception:
            return web.json_response({"error": "invalid_token"}, status=401)
        return web.json_response({"sub": claims["sub"], "username": claims["sub"]})


class UserPools:
    """The user pools of one rehearsed account."""

    def __init__(
        self, block: PortBlock, ports: dict[str, int], directory: Path, certificates: Certificates
    ) -> None:
        self._block = block
        self._ports = ports
        self._directory = directory
        self._certificates = certificates
        self._pools: dict[str, _Pool] = {}

    async def put_pool(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create a pool, or leave it as it is: none of its settings has an effect here."""
        pool_id = arn.rpartition("/")[2]
        if pool_id not in self._pools:
            if arn not in self._ports:
                self._ports[arn] = self._block.take()
            pool = _Pool(pool_id, self._ports[arn], self._directory, self._certificates)
            await pool.open()
            self._pools[pool_id] = pool
        return {"provider_url": self._pools[pool_id].issuer}

    async def put_client(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or change a client of a pool."""
        parsed = parse(UserPoolClientProperties, arn, properties)
        pool = self._pools.get(parsed.user_pool_id)
        if pool is None:
            raise RefusedError(f"{arn}: there is no user pool {parsed.user_pool_id}; put it first")
        client = arn.rpartition("/")[2]
        pool.clients[client] = parsed
        return {"secret": pool.secret(client)}

    async def delete(self, kind: str, arn: str) -> None:
        """Remove a pool or a client; nothing happens when there is none."""
        name = arn.rpartition("/")[2]
        if kind == "user-pool-client":
            for pool in self._pools.values():
                pool.clients.pop(name, None)
        elif gone := self._pools.pop(name, None):
            await gone.close()
            self._block.free(self._ports.pop(arn))

    def describe(self, kind: str, arn: str) -> dict[str, Any] | None:
        """What there is to know of a pool; None when there is no such one."""
        pool = self._pools.get(arn.rpartition("/")[2])
        return {"provider_url": pool.issuer, "clients": sorted(pool.clients)} if pool else None

    def as_provider(self, what: str, config: AuthenticateCognitoConfig) -> AuthenticateOidcConfig:
        """The provider that a pool is to a load balancer."""
        pool = self._pools.get(config.user_pool_arn.rpartition("/")[2])
        if pool is None or config.user_pool_client_id not in pool.clients:
            raise RefusedError(
                f"{what}: there is no client {config.user_pool_client_id} of {config.user_pool_arn}; put it first"
            )
        return AuthenticateOidcConfig(
            issuer=pool.issuer,
            authorization_endpoint=f"{pool.root}/oauth2/authorize",
            token_endpoint=f"{pool.root}/oauth2/token",
            user_info_endpoint=f"{pool.root}/oauth2/userInfo",
            client_id=config.user_pool_client_id,
            client_secret=pool.secret(config.user_pool_client_id),
            **config.model_dump(exclude={"user_pool_arn", "user_pool_client_id", "user_pool_domain"}),
        )

    async def close(self) -> None:
        """Stop answering."""
        for pool in self._pools.values():
            await pool.close()
