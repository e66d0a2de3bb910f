"""The rehearsed load balancer's actions that ask who it is: authenticate-oidc, authenticate-cognito, jwt-validation.

Behaviour is from the Elastic Load Balancing user guide ("Authenticate users", "Verify JWTs"). The providers are asked
for real. Not rehearsed: the signed claims that a target gets (`x-amzn-oidc-data`), refreshing a session, the limits of
a provider's key set. A session ends with the process that made it: its key is kept nowhere.
"""

from __future__ import annotations

import json
import logging
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal
from urllib.parse import urlencode

from aiohttp import BasicAuth, ClientError, ClientSession, ClientTimeout, TCPConnector, hdrs, web
from cryptography.fernet import Fernet, InvalidToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from pydantic import Field

from rehearsal.properties import Properties

log = logging.getLogger(__name__)

Action = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]
"""A step of a rule. It answers, or returns None to let the next action go on, as an authentication does."""

CALLBACK = "/oauth2/idpresponse"
PASSWORD_SECONDS = 15 * 60
"""How long somebody may take at the provider; the load balancer's own limit."""

PROVIDER = ClientTimeout(total=15)
KEYS_SECONDS = 300.0
"""How long a provider's keys are used before they are fetched again."""


class AdditionalClaim(Properties):
    """What a token must say beyond its issuer and its times."""

    name: str
    format: Literal["single-string", "string-array", "space-separated-values"]
    values: list[str] = Field(min_length=1)

    def holds(self, claims: dict[str, Any]) -> bool:
        """Whether the token says it, in this very form."""
        said = claims.get(self.name)
        match self.format:
            case "single-string":
                return isinstance(said, str) and [said] == self.values
            case "space-separated-values":
                return isinstance(said, str) and set(self.values) <= set(said.split(" "))
            case "string-array":
                return isinstance(said, list) and all(value in said for value in self.values)


class JwtValidationConfig(Properties):
    """Whose tokens are good."""

    issuer: str
    jwks_endpoint: str
    additional_claims: list[AdditionalClaim] = Field(default_factory=list)


class _Session(Properties):
    """What people are asked for, and how long it lasts, wherever they sign in."""

    scope: str = "openid"
    session_cookie_name: str = "AWSELBAuthSessionCookie"
    session_timeout: int = 604800
    on_unauthenticated_request: Literal["authenticate", "allow", "deny"] = "authenticate"


class AuthenticateOidcConfig(_Session):
    """Where people sign in, and as which client this load balancer is known there."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    user_info_endpoint: str
    client_id: str
    client_secret: str


class AuthenticateCognitoConfig(_Session):
    """The same, of a user pool of the account."""

    user_pool_arn: str
    user_pool_client_id: str
    user_pool_domain: str


class Provider:
    """Asks identity providers, over one pool of connections."""

    def __init__(self, trusted: ssl.SSLContext) -> None:
        self._trusted = trusted
        self._session: ClientSession | None = None
        self._keys: dict[str, tuple[float, KeySet]] = {}
        self._sealed = Fernet(Fernet.generate_key())

    async def close(self) -> None:
        """Hang up."""
        if self._session:
            await self._session.close()

    def seal(self, content: dict[str, Any]) -> str:
        """Content that comes back unread and unchanged, or not at all."""
        return self._sealed.encrypt(json.dumps(content).encode()).decode()

    def unseal(self, sealed: str | None, seconds: int) -> dict[str, Any] | None:
        """What was sealed no longer than `seconds` ago; None for anything else."""
        if not sealed:
            return None
        try:
            content: dict[str, Any] = json.loads(self._sealed.decrypt(sealed.encode(), ttl=seconds))
        except (InvalidToken, ValueError):
            return None
        return content

    async def keys(self, endpoint: str, *, again: bool = False) -> KeySet:
        """A provider's keys."""
        known = self._keys.get(endpoint)
        if known and not again and time.monotonic() - known[0] < KEYS_SECONDS:
            return known[1]
        keys = KeySet.import_key_set(await self.ask("GET", endpoint))
        self._keys[endpoint] = (time.monotonic(), keys)
        return keys

    async def ask(self, method: str, url: str, **request: Any) -> Any:
        """The JSON that a provider answers. Raises ClientError or TimeoutError."""
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(ssl=self._trusted), timeout=PROVIDER, raise_for_status=True
            )
        async with self._session.request(method, url, **request) as answer:
            return await answer.json(content_type=None)


def validate_token(config: JwtValidationConfig, provider: Provider) -> Action:
    """jwt-validation: go on with a good token, answer 401 to every other request."""

    async def validate(request: web.BaseRequest) -> web.StreamResponse | None:
        given = request.headers.getall(hdrs.AUTHORIZATION, [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token:
            return _refused(401)
        try:
            claims = await _claims(config, provider, token.strip())
        except (ClientError, TimeoutError) as error:
            log.warning("%s: %r", config.jwks_endpoint, error)
            return _refused(500)
        except (JoseError, ValueError) as error:
            log.info("a token is refused: %s", error)
            return _refused(401)
        wrong = [claim.name for claim in config.additional_claims if not claim.holds(claims)]
        if wrong:
            log.info("a token is refused: its %s", ", ".join(wrong))
            return _refused(401)
        return None

    return validate


async def _claims(config: JwtValidationConfig, provider: Provider, token: str) -> dict[str, Any]:
    """The claims of a token with a good signature, issuer and times. Raises JoseError or ValueError."""
    try:
        decoded = jwt.decode(token, await provider.keys(config.jwks_endpoint), algorithms=["RS256"])
    except InvalidKeyIdError:  # the provider may have others by now
        keys = await provider.keys(config.jwks_endpoint, again=True)
        decoded = jwt.decode(token, keys, algorithms=["RS256"])
    registry = jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": config.issuer}, exp={"essential": True}, leeway=0
    )
    registry.validate(decoded.claims)
    return decoded.claims


def authenticate(config: AuthenticateOidcConfig, provider: Provider, port: int) -> Action:
    """authenticate-oidc: go on for people with a session, send others to the provider, or refuse them."""
    session_cookie = f"{config.session_cookie_name}-0"
    state_cookie = "AWSALBAuthNonce"

    async def ask(request: web.BaseRequest) -> web.StreamResponse | None:
        session = provider.unseal(request.cookies.get(session_cookie), config.session_timeout)
        if session and session["issuer"] == config.issuer:
            request["signed_in"] = {
                "X-Amzn-Oidc-Identity": session["subject"],
                "X-Amzn-Oidc-Accesstoken": session["token"],
            }
            return None
        if request.rel_url.path == CALLBACK:
            return await come_back(request)
        match config.on_unauthenticated_request:
            case "allow":
                return None
            case "deny":
                return _refused(401)
        return send_away(request)

    def send_away(request: web.BaseRequest) -> web.StreamResponse:
        nonce = secrets.token_urlsafe(16)
        state = provider.seal({"nonce": nonce, "to": request.raw_path})
        query = urlencode(
            {
                "client_id": config.client_id,
                "redirect_uri": _own_url(request, port) + CALLBACK,
                "response_type": "code",
                "scope": config.scope,
                "state": state,
            }
        )
        answer = web.Response(
            status=302,
            headers={hdrs.LOCATION: f"{config.authorization_endpoint}?{query}", hdrs.SERVER: "awselb/2.0"},
        )
        answer.set_cookie(
            state_cookie, nonce, max_age=PASSWORD_SECONDS, secure=True, httponly=True, samesite="None"
        )
        return answer

    async def come_back(request: web.BaseRequest) -> web.StreamResponse:
        state = provider.unseal(request.rel_url.query.get("state"), PASSWORD_SECONDS)
        if (
            not state
            or not (code := request.rel_url.query.get("code"))
            or not secrets.compare_digest(state["nonce"], request.cookies.get(state_cookie, ""))
        ):
            return _refused(401)
        try:
            tokens = await provider.ask(
                "POST",
                config.token_endpoint,
                data={
                    "grant_type": "authorization_code",
                    "code": code,
                    "redirect_uri": _own_url(request, port) + CALLBACK,
                },
                auth=BasicAuth(config.client_id, config.client_secret),
            )
            token = tokens["access_token"]
            user = await provider.ask(
                "GET", config.user_info_endpoint, headers={hdrs.AUTHORIZATION: f"Bearer {token}"}
            )
            subject = str(user["sub"])
        except (ClientError, TimeoutError, KeyError, ValueError) as error:
            log.warning("%s: %r", config.token_endpoint, error)
            return _refused(561)
        answer = web.Response(
            status=302, headers={hdrs.LOCATION: str(state["to"]), hdrs.SERVER: "awselb/2.0"}
        )
        session = provider.seal({"subject": subject, "token": token, "issuer": config.issuer})
        answer.set_cookie(
            session_cookie,
            session,
            max_age=config.session_timeout,
            secure=True,
            httponly=True,
            samesite="None",
        )
        return answer

    return ask


def _own_url(request: web.BaseRequest, port: int) -> str:
    return f"https://{request.headers.get(hdrs.HOST, f'localhost:{port}')}"


def _refused(status: int) -> web.Response:
    """401: not signed in, or not with this. 561: the provider did not answer as it should."""
    reasons = {401: "Authorization Required", 500: "Internal Server Error", 561: "Unauthorized"}
    title = f"{status} {reasons[status]}"
    return web.Response(
        status=status,
        reason=reasons[status],
        text=f"<html>\r\n<head><title>{title}</title></head>\r\n<body>{title}</body>\r\n</html>\r\n",
        content_type="text/html",
        headers={hdrs.SERVER: "awselb/2.0"},
    )
