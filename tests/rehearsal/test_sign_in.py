"""Sign-in at the rehearsed load balancer, by the listener rules that were synthesized, with the real MLflow behind it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import boto3
import oidc_provider_mock
import pytest
import requests
import yaml
from joserfc import jwt
from joserfc.jwk import RSAKey
from moto.server import ThreadedMotoServer
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from werkzeug.serving import make_server

from rehearsal.load_balancer import ElasticLoadBalancing
from rehearsal.ports import LOOPBACK, PortBlock, free_port
from rehearsal.properties import RefusedError
from rehearsal.user_pool import UserPools
from stages.settings import Settings
from tests.unit.assembly import ROOT, Json, Platform
from tests.unit.conftest import OIDC, synthesized_dev

T = TypeVar("T")
HOST = "mlflow.example.com"
POOL = "arn:aws:cognito-idp:eu-west-1:222222222222:userpool/eu-west-1_this"
OTHER = "arn:aws:cognito-idp:eu-west-1:222222222222:userpool/eu-west-1_other"


@dataclass
class Balancer:
    """Elastic Load Balancing with a user pool, in an event loop of its own."""

    directory: Path
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.block = PortBlock(str(self.directory))
        self.elb = ElasticLoadBalancing(self.block, {}, self.directory)
        self.trusted = str(self.elb.certificates.authority)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(300)

    def pool(self, arn: str, scope: str) -> dict[str, str]:
        """A pool with clients as the platform declares them; what their references resolve to."""
        url = self.run(self.elb.user_pools.put_pool(arn, {}))["provider_url"]
        pool = arn.rpartition("/")[2]
        resolved = {"<userpool/Pool.Arn>": arn, "<userpool/Pool.ProviderURL>": url, "<userpool/Pool>": pool}
        for name, flow, allowed in (
            ("People", "code", "openid"),
            ("Machines", "client_credentials", scope),
            ("Gates", "client_credentials", scope),
        ):
            client = f"{name.lower()}-of-{pool}"
            made = self.elb.user_pools.put_client(
                f"arn:aws:cognito-idp:eu-west-1:222222222222:client/{client}",
                {
                    "UserPoolId": pool,
                    "AllowedOAuthFlows": [flow],
                    "AllowedOAuthScopes": [allowed],
                    "CallbackURLs": [f"https://{HOST}/oauth2/idpresponse"],
                },
            )
            resolved[f"<userpool/Pool/{name}>"] = client
            resolved[f"<userpool/Pool/{name}.ClientSecret>"] = self.run(made)["secret"]
        return resolved

    def close(self) -> None:
        self.run(self.elb.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.block.guard.close()


@dataclass(frozen=True)
class Server:
    """A protected MLflow: its URL, what to trust, and what the template's references became."""

    url: str
    trusted: str
    resolved: dict[str, str]
    pools: UserPools

    def get(self, path: str, token: str | None = None, **headers: str) -> requests.Response:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return requests.get(
            self.url + path, headers=headers, verify=self.trusted, allow_redirects=False, timeout=30
        )

    def token(self, client: str = "Machines") -> str:
        return ask_for_token(self.resolved, client, self.trusted)


def ask_for_token(resolved: dict[str, str], client: str, trusted: str) -> str:
    """As a machine does: by discovery and client credentials."""
    url = f"{resolved['<userpool/Pool.ProviderURL>']}/.well-known/openid-configuration"
    endpoint = requests.get(url, verify=trusted, timeout=30).json()["token_endpoint"]
    answer = requests.post(
        endpoint,
        data={"grant_type": "client_credentials"},
        auth=(resolved[f"<userpool/Pool/{client}>"], resolved[f"<userpool/Pool/{client}.ClientSecret>"]),
        verify=trusted,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def written_out(value: Any, resolved: dict[str, str]) -> Any:
    """Properties with the assembly's references replaced by what they refer to here."""
    if isinstance(value, dict):
        return {key: written_out(item, resolved) for key, item in value.items()}
    if isinstance(value, list):
        return [written_out(item, resolved) for item in value]
    if isinstance(value, str):
        for reference, meaning in sorted(resolved.items(), key=lambda one: -len(one[0])):
            value = value.replace(reference, meaning)
    return value


def put_listener(balancer: Balancer, platform: Platform, resolved: dict[str, str], target: int) -> str:
    """Put the platform's own balancer, listener and rules, with one target behind them."""
    paths = ("tracking/LoadBalancer", "tracking/Targets", "tracking/LoadBalancer/Https")
    resolved = {**{f"<{path}>": path for path in paths}, **resolved}
    attributes: Json = platform.at("tracking/LoadBalancer").properties
    balancer.run(balancer.elb.put_load_balancer(paths[0], written_out(attributes, resolved)))
    checks = {"HealthCheckPath": "/health", "HealthCheckIntervalSeconds": 1, "HealthyThresholdCount": 2}
    balancer.run(balancer.elb.put_target_group(paths[1], {**checks, "HealthCheckTimeoutSeconds": 1}))
    listener = written_out(platform.at(paths[2]).properties, resolved)
    url = str(balancer.run(balancer.elb.put_listener(paths[2], listener))["url"])
    for rule in platform.all("AWS::ElasticLoadBalancingV2::ListenerRule"):
        balancer.run(balancer.elb.put_listener_rule(rule.path, written_out(rule.properties, resolved)))

    async def register() -> None:
        balancer.elb.target_groups[paths[1]].register("task", target)

    balancer.run(register())
    deadline = time.monotonic() + 300
    while (balancer.elb.describe("target-group", paths[1]) or {})["targets"][0]["state"] != "healthy":
        assert time.monotonic() < deadline, "the target is not healthy"
        time.sleep(0.1)
    return url


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a stock MLflow server; what it stores is thrown away."""
    directory, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = ["server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", *command),
            *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
            *("--artifacts-destination", str(directory / "artifacts")),
            *("--allowed-hosts", "*", "--cors-allowed-origins", f"https://{HOST}"),
        ],
        cwd=directory,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    try:
        while True:
            try:
                requests.get(f"http://{LOOPBACK}:{port}/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, "MLflow did not start"
                assert time.monotonic() < deadline, "MLflow does not answer"
                time.sleep(0.5)
        yield port
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


@pytest.fixture(scope="module")
def balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    balancer = Balancer(tmp_path_factory.mktemp("balancer"))
    yield balancer
    balancer.close()


@pytest.fixture(scope="module")
def platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev with a user pool, synthesized."""
    content = settings.model_dump()
    account = settings.environments.dev.account
    content["environments"]["dev"] |= {
        "auth": "cognito",
        "certificate_arn": f"arn:aws:acm:{settings.tooling.region}:{account}:certificate/c0ffee",
        "host_name": HOST,
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("cognito")).platform("dev")


@pytest.fixture(scope="module")
def server(balancer: Balancer, platform: Platform, mlflow_server: int) -> Server:
    resolved = balancer.pool(POOL, "mlflow-dev/access")
    url = put_listener(balancer, platform, resolved, mlflow_server)
    return Server(url, balancer.trusted, resolved, balancer.elb.user_pools)


# Machines


def test_a_real_client_works_with_a_token_and_not_without(server: Server) -> None:
    program = (
        "import mlflow\n"
        "mlflow.set_experiment('signed in')\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('m', 1.0)\n"
        "    mlflow.log_text('hello', 'note.txt')\n"
        "assert mlflow.get_run(run.info.run_id).data.metrics == {'m': 1.0}\n"
        "assert mlflow.artifacts.load_text(run.info.artifact_uri + '/note.txt') == 'hello'\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "REQUESTS_CA_BUNDLE": server.trusted,
        "DO_NOT_TRACK": "true",
    }

    def client(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program], env={**environment, **more}, capture_output=True, text=True
        )

    good = client(MLFLOW_TRACKING_TOKEN=server.token())
    assert good.returncode == 0, good.stderr
    anonymous = client()
    assert anonymous.returncode != 0
    assert "401" in anonymous.stderr, anonymous.stderr


@pytest.fixture(scope="module")
def secrets_manager() -> Iterator[dict[str, str]]:
    """Where a gate finds its client's secret: the variables that lead there."""
    moto = ThreadedMotoServer(LOOPBACK, port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{port}",
        "AWS_ACCESS_KEY_ID": "gate",
        "AWS_SECRET_ACCESS_KEY": "gate",
        "AWS_CONFIG_FILE": os.devnull,
    }
    moto.stop()


def gate(
    server: Server, secrets_manager: dict[str, str], client_secret: str, tmp_path: Path
) -> subprocess.CompletedProcess[str]:
    """The smoke gate's own commands, but without the demo, which takes longest."""
    store = boto3.client(
        "secretsmanager",
        region_name="eu-west-1",
        endpoint_url=secrets_manager["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    held = {"client_id": server.resolved["<userpool/Pool/Gates>"], "client_secret": client_secret}
    name = f"gates-{tmp_path.name}"
    arn = store.create_secret(Name=name, SecretString=json.dumps(held))["ARN"]
    spec = yaml.safe_load((ROOT / "smoke_tests" / "buildspec.yml").read_text(encoding="utf-8"))
    script = "set -e\n" + "\n".join(spec["phases"]["build"]["commands"])
    script = script.replace(".venv/bin/python", sys.executable).replace("reports/", f"{tmp_path}/")
    return subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
            **secrets_manager,
            "MLFLOW_TRACKING_URI": server.url,
            "SMOKE_DEMO": "false",
            "REQUESTS_CA_BUNDLE": server.trusted,
            "TOKEN_ISSUER": server.resolved["<userpool/Pool.ProviderURL>"],
            "TOKEN_REQUEST": "scope=mlflow-dev%2Faccess",
            "TOKEN_SECRET_ARN": arn,
        },
        capture_output=True,
        text=True,
    )


def test_the_smoke_gate_signs_in(server: Server, secrets_manager: dict[str, str], tmp_path: Path) -> None:
    done = gate(server, secrets_manager, server.resolved["<userpool/Pool/Gates.ClientSecret>"], tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test_whoever_does_not_sign_in" in (tmp_path / "smoke.xml").read_text(encoding="utf-8")


def test_a_gate_that_gets_no_token_stops_with_a_sentence(
    server: Server, secrets_manager: dict[str, str], tmp_path: Path
) -> None:
    done = gate(server, secrets_manager, "a-wrong-secret", tmp_path)
    assert done.returncode == 2
    assert "answered 401 invalid_client; check the client" in done.stderr
    assert not (tmp_path / "smoke.xml").exists(), "no test ran"
    assert "a-wrong-secret" not in done.stdout + done.stderr


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_anonymous_is_refused_everywhere_but_at_health(server: Server) -> None:
    assert server.get("/health").text == "OK"
    for path in (SEARCH, "/version", "/health/", "/health/details", "/HEALTH", "//health", "/"):
        answer = server.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["Server"] == "awselb/2.0", f"{path} reached MLflow"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = requests.request(method, f"{server.url}/health", verify=server.trusted, timeout=30)
        assert answer.status_code == 401, method


def forged(server: Server, key: RSAKey, header: Json, **changed: Any) -> str:
    """A token like a good one but for what is changed; None takes a claim away."""
    claims = claims_of(server.token())
    claims.update(changed)
    return jwt.encode(
        header,
        {name: value for name, value in claims.items() if value is not None},
        key,
        algorithms=[header["alg"]],
    )


def claims_of(token: str) -> Json:
    body = token.split(".")[1]
    claims: Json = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def pools_key(server: Server) -> RSAKey:
    """The pool's own key: what it would have signed itself."""
    return server.pools._pools["eu-west-1_this"]._key


BAD: dict[str, Callable[[Server], str]] = {
    "expired": lambda server: of_pool(server, exp=int(time.time()) - 60),
    "without expiry": lambda server: of_pool(server, exp=None),
    "not yet valid": lambda server: of_pool(server, nbf=int(time.time()) + 600),
    "wrong scope": lambda server: of_pool(server, scope="mlflow-prod/access"),
    "scope that only begins alike": lambda server: of_pool(server, scope="mlflow-dev/access-not"),
    "without scope": lambda server: of_pool(server, scope=None),
    "a person's own": lambda server: of_pool(server, scope="openid"),
    "an identity token": lambda server: of_pool(server, token_use="id"),
    "wrong issuer": lambda server: of_pool(server, iss="https://login.example.com"),
    "tampered": lambda server: tampered(server.token()),
    "signed by a stranger": lambda server: forged(
        server, RSAKey.generate_key(2048), {"alg": "RS256", "kid": "eu-west-1_this"}
    ),
    "signed by the public key": lambda server: signed_by_the_public_key(server),
    "alg none": lambda server: without_signature(server.token()),
    "no token at all": lambda server: "not-a-token",
}


def of_pool(server: Server, **changed: Any) -> str:
    return forged(server, pools_key(server), {"alg": "RS256", "kid": "eu-west-1_this"}, **changed)


def tampered(token: str) -> str:
    header, _, signature = token.split(".")
    claims = {**claims_of(token), "sub": "somebody-else"}
    return f"{header}.{encoded(json.dumps(claims).encode())}.{signature}"


def signed_by_the_public_key(server: Server) -> str:
    """Made by hand: no library signs so. A verifier that lets the token choose would take the key for a secret."""
    header = encoded(b'{"alg":"HS256","kid":"eu-west-1_this"}')
    signed = f"{header}.{server.token().split('.')[1]}"
    key = pools_key(server).as_pem(private=False)
    return f"{signed}.{encoded(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def without_signature(token: str) -> str:
    header = encoded(b'{"alg":"none"}')
    return f"{header}.{token.split('.')[1]}."


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_token_is_refused(server: Server, kind: str) -> None:
    assert server.get(SEARCH, of_pool(server)).status_code == 200, "the forger's unchanged token is good"
    answer = server.get(SEARCH, BAD[kind](server))
    assert (answer.status_code, answer.headers["Server"]) == (401, "awselb/2.0")


def test_another_pools_token_is_refused(server: Server, balancer: Balancer) -> None:
    """Even with the same scope: another platform of the same name, say."""
    token = ask_for_token(balancer.pool(OTHER, "mlflow-dev/access"), "Machines", balancer.trusted)
    assert claims_of(token)["scope"] == "mlflow-dev/access"
    assert server.get(SEARCH, token).status_code == 401


def test_a_token_counts_whatever_the_case_and_beside_an_accept_of_pages(server: Server) -> None:
    token = server.token()
    assert server.get(SEARCH, Authorization=f"bearer {token}").status_code == 200
    assert server.get(SEARCH, token, Accept="text/html").status_code == 200
    assert server.get(SEARCH, Authorization="Basic YWRtaW46cGFzc3dvcmQ=").status_code == 401


def test_a_client_gets_no_token_of_a_scope_it_was_not_granted(server: Server) -> None:
    root = server.resolved["<userpool/Pool.ProviderURL>"].rpartition("/")[0]
    answer = requests.post(
        f"{root}/oauth2/token",
        data={"grant_type": "client_credentials", "scope": "mlflow-prod/access"},
        auth=(
            server.resolved["<userpool/Pool/Machines>"],
            server.resolved["<userpool/Pool/Machines.ClientSecret>"],
        ),
        verify=server.trusted,
        timeout=30,
    )
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_scope"})


# People


PAGE = {"Accept": "text/html,application/xhtml+xml", "Host": HOST}
CALL = {"Accept": "application/json", "Host": HOST}


def new_browser(trusted: str) -> requests.Session:
    """One that trusts the rehearsal's authority, whatever this machine's variables say."""
    browser = requests.Session()
    browser.verify, browser.trust_env = trusted, False
    return browser


def signed_in(server: Server, name: str) -> requests.Session:
    """A browser's way through the sign-in, step by step."""
    browser = new_browser(server.trusted)
    away = browser.get(server.url + "/?tab=models", headers=PAGE, allow_redirects=False, timeout=30)
    assert away.status_code == 302
    query = parse_qs(urlsplit(away.headers["Location"]).query)
    assert query["redirect_uri"] == [f"https://{HOST}/oauth2/idpresponse"]
    page = browser.get(away.headers["Location"], timeout=30)
    assert page.status_code == 200, page.text
    back = browser.post(
        away.headers["Location"], data={"username": name}, allow_redirects=False, timeout=30
    ).headers["Location"]
    assert back.startswith(f"https://{HOST}/oauth2/idpresponse?")
    callback = back.replace(f"https://{HOST}", server.url)
    done = browser.get(callback, headers=PAGE, allow_redirects=False, timeout=30)
    assert (done.status_code, done.headers["Location"]) == (302, "/?tab=models"), done.text
    return browser


def test_a_person_signs_in_and_uses_the_interface(server: Server) -> None:
    browser = signed_in(server, "ada@example.com")
    assert "<title>MLflow</title>" in browser.get(server.url + "/", headers=PAGE, timeout=30).text
    assert browser.get(server.url + SEARCH, headers=CALL, timeout=30).status_code == 200
    (cookie,) = (cookie for cookie in browser.cookies if cookie.name == "AWSELBAuthSessionCookie-0")
    assert cookie.secure
    assert cookie.has_nonstandard_attr("HttpOnly")


def test_a_made_up_session_is_refused(server: Server) -> None:
    browser = signed_in(server, "ada@example.com")
    cookie = str(browser.cookies["AWSELBAuthSessionCookie-0"])
    for made_up in (cookie[:-4] + "AAAA", "", "session"):
        answer = server.get(SEARCH, Cookie=f"AWSELBAuthSessionCookie-0={made_up}")
        assert answer.status_code == 401


def test_a_sign_in_that_somebody_else_began_is_refused(server: Server) -> None:
    """Else an attacker could sign a victim's browser in as the attacker."""
    browser = new_browser(server.trusted)
    away = browser.get(server.url + "/", headers=PAGE, allow_redirects=False, timeout=30)
    back = browser.post(
        away.headers["Location"], data={"username": "mallory"}, allow_redirects=False, timeout=30
    ).headers["Location"]
    callback = back.replace(f"https://{HOST}", server.url)
    assert server.get(callback.removeprefix(server.url), **PAGE).status_code == 401


def test_the_pool_sends_nobody_elsewhere(server: Server) -> None:
    away = server.get("/", Accept="text/html", Host="evil.example.com")
    answer = requests.get(away.headers["Location"], verify=server.trusted, timeout=30)
    assert answer.status_code == 400
    assert "redirect_mismatch" in answer.text


@pytest.mark.browser
def test_a_browser_signs_in_and_shows_the_interface(server: Server, tmp_path: Path) -> None:
    """A real one, under the platform's own host name: its cookies, its redirects, its requests from the page."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("Chromium and its driver are not on this machine (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    address = server.url.removeprefix("https://")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root in CI
        "--disable-dev-shm-usage",
        "--ignore-certificate-errors",  # the rehearsal's authority is unknown to it
        "--no-proxy-server",
        f"--host-resolver-rules=MAP {HOST}:443 {address}",
        f"--user-data-dir={tmp_path}",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        # Between two pages, an element of the one that goes is stale.
        wait = WebDriverWait(browser, 120, ignored_exceptions=(StaleElementReferenceException,))
        browser.get(f"https://{HOST}/#/experiments")
        wait.until(lambda page: page.find_element(By.NAME, "username")).send_keys("ada@example.com")
        assert browser.current_url.startswith(server.resolved["<userpool/Pool.ProviderURL>"][:16])
        browser.find_element(By.TAG_NAME, "button").click()
        # "Default" is an experiment: the page has asked MLflow for it, and was let through.
        wait.until(lambda page: "Default" in page.find_element(By.TAG_NAME, "body").text)
        assert browser.current_url.startswith(f"https://{HOST}/")
        session = browser.get_cookie("AWSELBAuthSessionCookie-0")
        assert session is not None
        assert (session["secure"], session["httpOnly"]) == (True, True)
    finally:
        browser.quit()


# Somebody else's provider


@pytest.fixture(scope="module")
def provider(balancer: Balancer) -> Iterator[str]:
    """An OpenID Connect provider that is not ours."""
    tls = balancer.elb.certificates.for_server()
    application = oidc_provider_mock.app(require_client_registration=False)
    server = make_server(LOOPBACK, 0, application, threaded=True, ssl_context=tls)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://{LOOPBACK}:{server.server_port}"
    server.shutdown()
    thread.join(30)


def test_people_of_any_provider_sign_in(
    provider: str, settings: Settings, tmp_path: Path, balancer: Balancer, mlflow_server: int
) -> None:
    content = settings.model_dump()
    found = requests.get(
        f"{provider}/.well-known/openid-configuration", verify=balancer.trusted, timeout=30
    ).json()
    content["environments"]["dev"] |= {
        "auth": "oidc",
        "certificate_arn": f"arn:aws:acm:eu-west-1:{settings.environments.dev.account}:certificate/c0ffee",
        "host_name": HOST,
        "oidc": {
            **OIDC,
            "issuer": found["issuer"],
            "authorization_endpoint": found["authorization_endpoint"],
            "token_endpoint": found["token_endpoint"],
            "user_info_endpoint": found["userinfo_endpoint"],
            "jwks_endpoint": found["jwks_uri"],
        },
    }
    platform = synthesized_dev(content, tmp_path / "oidc").platform("dev")
    own = Balancer(tmp_path / "own")
    own.elb.certificates = balancer.elb.certificates
    own.elb._provider._trusted = balancer.elb.certificates.for_client()
    secret = f"{{{{resolve:secretsmanager:{OIDC['people_secret_arn']}:SecretString:%s::}}}}"
    try:
        url = put_listener(
            own,
            platform,
            {secret % "client_id": "mlflow", secret % "client_secret": "any"},
            mlflow_server,
        )
        server = Server(url, balancer.trusted, {}, own.elb.user_pools)
        browser = new_browser(balancer.trusted)
        away = browser.get(url + "/", headers=PAGE, allow_redirects=False, timeout=30)
        assert away.headers["Location"].startswith(f"{provider}/oauth2/authorize?")
        back = browser.post(
            away.headers["Location"], data={"sub": "grace"}, allow_redirects=False, timeout=30
        )
        assert back.status_code == 302, back.text
        callback = back.headers["Location"].replace(f"https://{HOST}", url)
        done = browser.get(callback, headers=PAGE, allow_redirects=False, timeout=30)
        assert done.status_code == 302, done.text
        assert browser.get(url + SEARCH, headers=CALL, timeout=30).status_code == 200
        assert server.get(SEARCH).status_code == 401
    finally:
        own.close()


# The load balancer's own rules for these actions


def test_a_listener_without_https_has_no_sign_in(balancer: Balancer, server: Server) -> None:
    """The real one refuses such a listener, too."""
    actions = [
        {"Type": "jwt-validation", "JwtValidationConfig": {"Issuer": "i", "JwksEndpoint": "https://j"}},
        {"Type": "forward", "Order": 2, "TargetGroupArn": "tracking/Targets"},
    ]
    put = balancer.elb.put_listener(
        "plain", {"LoadBalancerArn": "tracking/LoadBalancer", "DefaultActions": actions}
    )
    with pytest.raises(RefusedError, match="jwt-validation is for HTTPS listeners only"):
        balancer.run(put)


def test_a_redirect_to_https_keeps_host_path_and_query(balancer: Balancer, server: Server) -> None:
    redirect = {"StatusCode": "HTTP_301", "Protocol": "HTTPS", "Port": "443"}
    put = balancer.elb.put_listener(
        "plain",
        {
            "LoadBalancerArn": "tracking/LoadBalancer",
            "DefaultActions": [{"Type": "redirect", "RedirectConfig": redirect}],
        },
    )
    url = str(balancer.run(put)["url"])
    answer = requests.get(f"{url}/a?b=c", headers={"Host": HOST}, allow_redirects=False, timeout=30)
    assert (answer.status_code, answer.headers["Location"]) == (301, f"https://{HOST}:443/a?b=c")


def test_plain_http_is_not_answered(server: Server) -> None:
    with socket.create_connection((LOOPBACK, int(server.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: mlflow.example.com\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP/1.1 200")
