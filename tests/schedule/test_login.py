"""Only who knows the login of a Prefect server of ours can create runs on it: no web page of another origin does."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from browser import browser, console, installed
from conftest import ROOT, TINY, commit, make_project, run
from processes import wait_until, within
from selenium.webdriver.common.by import By
from servers import prefect_server
from test_ui import body, log_in
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from changepair.flows.running import server as limits
from changepair.flows.running.server import MOST_WAITING

pytestmark = pytest.mark.attack
WRITES = ("deployments/", "flow_runs/", "flows/", "automations/", "work_pools/")


@dataclass(frozen=True)
class Server:
    """A server that `changepair ui` started with a generated login, as a user has it."""

    api: str
    home: Path

    @property
    def login(self) -> str:
        return (self.home / "changepair-login").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user's other terminal: it names the server and no login."""
        return {"PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.home), "PREFECT_API_AUTH_STRING": ""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, PREFECT_SERVER_API_AUTH_STRING="") as api:
        yield Server(api, home)


def test_the_login_is_generated_in_a_file_of_the_user_alone_and_never_printed(server: Server) -> None:
    file = server.home / "changepair-login"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(server.login.partition(":")[2]) >= 32
    printed = (server.home / "server.log").read_text()
    assert f"login: the line in {file}" in printed and server.login not in printed


@pytest.mark.parametrize("host", [None, "evil.example"])
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json"])
def test_without_the_login_nothing_is_created(server: Server, content_type: str | None, host: str | None) -> None:
    """A page of another origin can send the first two without asking; with DNS rebinding the third one too, under its own host."""
    headers = {name: value for name, value in (("content-type", content_type), ("host", host)) if value}
    for path in WRITES:
        answer = httpx.post(f"{server.api}/{path}", content=b'{"name": "evil"}', headers=headers)
        assert answer.status_code == httpx.codes.UNAUTHORIZED, path
    name, _, password = server.login.partition(":")
    flows = httpx.post(f"{server.api}/flows/filter", json={}, auth=(name, password)).json()
    assert "evil" not in {flow["name"] for flow in flows}  # there may be flows of other tests


def test_a_page_of_another_origin_may_read_nothing(server: Server) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = httpx.options(f"{server.api}/flow_runs/", headers=headers)
    assert answer.status_code == httpx.codes.BAD_REQUEST and "access-control-allow-origin" not in answer.headers
    own = httpx.get(f"{server.api}/health", headers={"origin": "https://evil.example"})
    assert own.json() is True and "access-control-allow-origin" not in own.headers


def test_commands_of_the_same_user_need_no_typing(server: Server, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", TINY)
    commit(project)
    assert run(project, "changepair", "deploy", **server.environment).stdout.splitlines()[-1] == "created: small, no schedule"
    stage = run(project, "python", "-m", "changepair.flows.ingest", "parts", **server.environment)
    assert stage.returncode == 0, stage.stderr
    assert f"{server.api} answers" in run(project, "changepair", "doctor", **server.environment).stdout
    said = run(project, "prefect", "deployment", "ls", **{**server.environment, "PREFECT_API_AUTH_STRING": server.login})
    assert "scheduled/small" in said.stdout


def test_a_login_that_the_server_refuses_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", TINY)
    for wrong in ({"PREFECT_API_AUTH_STRING": "someone:else"}, {"PREFECT_HOME": str(tmp_path / "of another user")}):
        for command in (("changepair", "deploy"), ("changepair", "retrain", "small")):
            result = run(project, *command, **{**server.environment, **wrong})
            assert result.returncode == 2 and "Traceback" not in result.stderr
            assert result.stderr.splitlines()[-1].startswith("changepair: PREFECT_API_AUTH_STRING: the Prefect server at ")


def test_a_login_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "changepair-login"
    file.write_text("someone:secret")
    file.chmod(0o644)
    variables = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_AUTH_STRING": ""}
    result = run(ROOT, "changepair", "ui", "--port", "0", **variables)
    assert result.returncode == 2 and "other users can read the login" in result.stderr


def test_the_temporary_server_of_a_run_needs_a_login_too() -> None:
    program = (
        "import httpx; from changepair.flows.running.temporary import temporary_server; url = temporary_server('a:b'); "
        "print(*(httpx.post(url + '/flows/filter', json={}, auth=auth).status_code for auth in (None, ('a', 'b'))))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT).stdout.split() == ["401", "200"]


def test_few_websockets_may_wait_for_their_login(server: Server) -> None:
    address = f"{server.api.replace('http://', 'ws://')}/events/out"

    def connected() -> ClientConnection:
        return exits.enter_context(connect(address, subprotocols=[Subprotocol("prefect")]))

    with ExitStack() as exits:
        silent = [connected() for _ in range(MOST_WAITING)]
        with pytest.raises(InvalidStatus, match="403"):
            connected()
        silent[0].send(json.dumps({"type": "auth", "token": server.login}))
        assert json.loads(silent[0].recv(timeout=10)) == {"type": "auth_success"}
        silent[1].send("[" + "1," * 1_500_000)
        with pytest.raises(ConnectionClosedError, match="too big"):
            silent[1].recv(timeout=10)
        within(10, lambda: accepted(connected))  # in the place of those two


def accepted(connected: Callable[[], object]) -> bool:
    with suppress(InvalidStatus):
        return connected() is not None
    return False


def test_a_websocket_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.1)
    sent: list[Any] = []

    async def silence() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()

    asyncio.run(limits.Handshakes(app)({"type": "websocket"}, silence, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


ATTACK = """<title>attack</title><script>
const api = '%s', run = JSON.stringify({name: 'evil'});
const typed = type => new Blob([run], type ? {type} : {});
(async () => {
  const tries = [['no-cors', typed()], ['no-cors', typed('text/plain')], ['cors', typed('application/json')], ['cors', typed()]];
  for (const [mode, body] of tries)
    await fetch(api + '/flows/', {method: 'POST', mode, body, credentials: 'include'}).catch(() => 0);
  document.title = 'done';
})();
</script>"""


@installed
@pytest.mark.slow
def test_a_page_of_another_origin_creates_nothing_in_a_browser_that_is_logged_in(server: Server, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/index.html").write_text(ATTACK % server.api)
    evil = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "evil")))
    Thread(target=evil.serve_forever, daemon=True).start()
    url = server.api.removesuffix("/api")
    with browser(tmp_path / "profile") as driver:
        driver.get(f"{url}/dashboard")
        wait_until(lambda: driver.find_elements(By.CSS_SELECTOR, "input") and "/login" in driver.current_url, what="the login page")
        log_in(driver, url, "changepair:wrong")
        wait_until(lambda: "Authentication failed" in body(driver), what="the refusal")
        log_in(driver, url, server.login)
        wait_until(lambda: "/login" not in driver.current_url, what="the page after the login")
        driver.get(f"{url}/flows")
        wait_until(lambda: "Flows" in body(driver), what="the page of flows")
        driver.get(f"http://localhost:{evil.server_port}/")  # another origin
        wait_until(lambda: driver.title == "done", what="the attack")
        assert console(driver)
    evil.shutdown()
    name, _, password = server.login.partition(":")
    flows = httpx.post(f"{server.api}/flows/filter", json={}, auth=(name, password)).json()
    assert "evil" not in {flow["name"] for flow in flows}
