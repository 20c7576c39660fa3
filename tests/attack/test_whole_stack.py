"""The whole stack against a local attacker, who opens sockets on loopback and has no login, no token and no file of the user.

Server, deployment, worker with a run, service and pages are started as a user starts them. What listens is asked of the kernel.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from conftest import ROOT, TINY, commit, make_project, run, save, write_pipelines
from hostile import COUNTS
from lines import old, picture, predictor
from prefect.server.api.server import API_ROUTERS
from processes import started, wait_until, within
from servers import free_port, prefect_server
from test_hostile_clients import black_png, memory
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from changepair.tasks.monitoring.record import Record, arrived, judge

pytestmark = [pytest.mark.attack, pytest.mark.slow]  # three minutes in all
SECRET = "canary5e1f"  # in names of a picture, a kit and a tag, and in a file  # pragma: allowlist secret
TOKEN = "token-of-the-user"
FOREIGN: tuple[dict[str, str], ...] = (
    {},
    {"Origin": "https://evil.example"},
    {"Host": "evil.example"},
    {"Origin": "null", "Content-Type": "text/plain"},
    {"Authorization": "Basic Og=="},
    {"Authorization": "Basic Y2hhbmdlcGFpcjo="},  # the login's name, and no password
    {"Authorization": "Bearer x"},
    {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Prefix": "/api/health"},
)
LARGE = 64_000_000
"""Bytes of a bomb; each has this size at the most once it is sent."""
GROWN = 400_000_000
"""Bytes by which a process may have grown at its peak. The budget of the service is its option --memory."""
OPEN = {("server", "/api/health"), ("server", "/api/ready"), ("worker", "/health"), ("api", "/health"), ("api", "/ready")}
"""What answers without a login or a token. It says that a process lives."""
DATALESS = {
    "server": re.compile(r"/(?!api/).*"),  # the page, which asks the API for everything that it shows
    "worker": re.compile(r"/(docs|docs/oauth2-redirect|redoc|openapi\.json)"),
}
"""Files that answer too, and hold no data."""


@dataclass
class Stack:
    top: Path
    file: Path
    """A file of the user, outside of what is served."""
    server: str
    login: tuple[str, str]
    processes: dict[str, psutil.Process] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    """Address of each HTTP service."""

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        """What the server answers its user."""
        answer = httpx.request(method, f"{self.server}/{path}", json=content, auth=self.login, timeout=60)
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else None

    def everything(self) -> dict[str, Any]:
        """What an attacker could have made or changed on the server."""
        whole: dict[str, Any] = {}
        for what in ("flow_runs", "flows", "deployments", "work_pools", "automations", "variables", "block_documents", "artifacts"):
            items = self.ask("POST", f"{what}/filter", {})
            kept = ("id", "name", "parameters", "tags", "entrypoint", "base_job_template", "value", "enabled")
            whole[what] = sorted(json.dumps({key: item[key] for key in kept if key in item}) for item in items)
        whole["states"] = {item["id"]: item["state"]["type"] for item in self.ask("POST", "flow_runs/filter", {})}
        return whole

    def alive(self) -> dict[int, str]:
        """Every process of the stack, and which part it is of."""
        found = {}
        for name, top in self.processes.items():
            with suppress(psutil.Error):
                found |= {one.pid: name for one in (top, *top.children(recursive=True))}
        return found

    def listening(self) -> dict[tuple[str, int], str]:
        """Address and port of every socket of the stack that takes what anybody sends, and whose it is."""
        found = {}
        for pid, name in self.alive().items():
            with suppress(psutil.Error):
                for one in psutil.Process(pid).net_connections("inet"):
                    if one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr):
                        found[one.laddr.ip, one.laddr.port] = name
        return found

    def refuse_leak(self, answer: str | bytes, *about: Any) -> None:
        """An answer to the attacker holds no secret, and no path of the user."""
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
        for secret in (SECRET, TOKEN, self.login[1], str(self.top), str(ROOT)):
            assert secret not in text, (*about, text[:500])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    top = tmp_path_factory.mktemp("stack")
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {"folder": "line", "prompts": "parts/bricks/train/good/0.png", "normals": "normals"}
    project = make_project(top / "project", content)
    runs = {"pool": "machines", "tags": [SECRET], "repository": str(top / "origin.git"), "workspaces": str(top / "workspaces")}
    content["datasets"]["folders"]["parts"]["path"] = str(project / "parts")
    write_pipelines(project, content | {"runs": runs})
    save(picture(0), project / "normals/0.png")
    old(save(picture(1, hole=True), project / f"line/{SECRET}.png"))
    commit(project)
    subprocess.run(["git", "clone", "--quiet", "--bare", str(project), str(top / "origin.git")], check=True)
    record, one = Record(project / "data/watch/small"), predictor()
    list(judge(one, "kit-1", arrived(project / "line", record, settled=0), record))
    one.save(top / "kits" / SECRET)
    file = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    file.write_text(SECRET)
    ports = {name: free_port() for name in ("worker", "api", "demo", "review", "open")}
    commands = {
        "worker": ("work", "--pool", "machines", "--with-healthcheck"),
        "api": ("api", "--kits", str(top / "kits"), "--memory", "1500", "--port", str(ports["api"])),
        "demo": ("demo", "--port", str(ports["demo"])),
        "review": ("review", "small", "--port", str(ports["review"])),
        "open": ("review", "small", "--port", str(ports["open"])),  # without a token
    }
    with ExitStack() as exits:
        server = exits.enter_context(prefect_server(top / "prefect", PREFECT_SERVER_API_AUTH_STRING=""))
        name, _, password = (top / "prefect/changepair-login").read_text().strip().partition(":")
        whole = Stack(top, file, server, (name, password))
        user = {"PREFECT_API_URL": server, "PREFECT_HOME": str(top / "prefect"), "PREFECT_API_AUTH_STRING": "", "TMPDIR": str(top)}
        [owner] = [one for one in psutil.Process().children() if str(server.rpartition(":")[2].split("/")[0]) in one.cmdline()]
        whole.processes["server"] = owner
        assert run(project, "changepair", "deploy", **user).returncode == 0
        [deployment] = whole.ask("POST", "deployments/filter", {})
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}  # for an attacker to start
        whole.ask("POST", f"deployments/{deployment['id']}/create_flow_run", {"state": later})
        user |= {"CHANGEPAIR_REPOSITORIES": runs["repository"], "PREFECT_WORKER_QUERY_SECONDS": "1"}  # type: ignore[dict-item]
        user["PREFECT_WORKER_WEBSERVER_PORT"] = str(ports["worker"])
        for part, command in commands.items():
            token = {"CHANGEPAIR_API_TOKEN": "" if part == "open" else TOKEN}
            process = exits.enter_context(started(project, "changepair", *command, log=f"../{part}.log", **user, **token))
            whole.processes[part] = psutil.Process(process.pid)
        whole.pages = {"server": server.removesuffix("/api")} | {part: f"http://127.0.0.1:{port}" for part, port in ports.items()}
        for part, page in whole.pages.items():
            within(180, lambda page=page: answers(page), part)
        yield whole
        whole.processes["worker"].terminate()  # it is in a process group of its own
        whole.processes["worker"].wait(60)


def answers(page: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(page, timeout=5).status_code > 0
    return False


def retrained(stack: Stack) -> Iterator[None]:
    """Have the user's deployment run; give a moment while the run is at work, again and again."""
    [deployment] = stack.ask("POST", "deployments/filter", {})
    made = stack.ask("POST", f"deployments/{deployment['id']}/create_flow_run", {})
    state: dict[str, Any] = {"type": ""}

    def ended() -> bool:
        state.update(stack.ask("GET", f"flow_runs/{made['id']}")["state"])
        return state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    while not ended():
        yield
    assert state["type"] == "COMPLETED", state


def sent(address: tuple[str, int], parts: Iterator[bytes]) -> bytes:
    """Send bytes to a socket until they end or it is closed; return what came back, at the most a megabyte."""
    got = b""
    with suppress(OSError), closing(socket.create_connection(address, timeout=3)) as client:
        with suppress(OSError):
            for part in parts:
                client.sendall(part)
        while len(got) < 1_000_000 and (more := client.recv(65536)):
            got += more
    return got


def repeated(part: bytes, *, before: bytes = b"") -> Iterator[bytes]:
    yield before
    for _ in range(LARGE // len(part)):
        yield part


def raw_attacks() -> Iterator[Iterator[bytes]]:
    """What needs no protocol, or breaks one."""
    block = b"a" * 1_000_000
    yield iter([b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"])
    yield iter([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500)])  # TLS
    yield iter([os.urandom(100_000)])
    yield iter([b"\n" * 100_000])
    yield iter([b'{"type": "auth", "token": ""}\n' * 100])
    yield iter([b"\xff" * 8 + b"\x00" * 100_000])  # a frame of Dask as long as its header can say
    yield repeated(block)
    yield repeated(block, before=b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    yield repeated(b"X: y\r\n" * 100_000, before=b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    yield repeated(block, before=b"POST /api/flow_runs/filter HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
    chunk = b"f4240\r\n" + block + b"\r\n"
    yield repeated(chunk, before=b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")


def climbing(file: Path) -> list[str]:
    """Paths of a file outside of what a page serves."""
    up = "/".join([".."] * 16)
    prefixes = ("", "/static", "/assets", "/static-offline-docs", "/gradio_api/file=", "/gradio_api/file", "/file=", "/v2", "/api")
    plain = [f"{prefix}/{up}{file}" for prefix in prefixes] + [f"{prefix}{file}" for prefix in prefixes]
    return [*plain, *(one.replace("..", "%2e%2e") for one in plain), *(one.replace("../", "..%2f") for one in plain)]


def test_a_run_at_work_listens_to_its_user_alone_and_ends_as_it_would(stack: Stack) -> None:
    """Every socket that it opens gets what breaks protocols, while it is open."""
    before, attacked = {pid: memory(pid, "VmRSS") for pid in stack.alive()}, dict[tuple[str, int], str]()
    half_sent: list[socket.socket] = []
    for _ in retrained(stack):
        for address, owner in stack.listening().items():
            if address in attacked:
                continue
            attacked[address] = owner
            assert address[0] in ("127.0.0.1", "::1"), f"{owner} listens on {address}"
            with ThreadPoolExecutor(4) as pool:
                for answer in pool.map(lambda parts, address=address: sent(address, parts), raw_attacks()):
                    stack.refuse_leak(answer, owner, address)
                    COUNTS["stack, sockets", "refused"] += 1
            for _number in range(20):
                with suppress(OSError):
                    half_sent.append(socket.create_connection(address, timeout=3))
                    half_sent[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half")
    for client in half_sent:
        client.close()
    assert {"server", "worker", "api", "demo", "review", "open"} == set(attacked.values())
    grown = {name: memory(pid, "VmHWM") - before[pid] for pid, name in stack.alive().items() if pid in before}
    assert all(size < GROWN for size in grown.values()), grown


def routes_of(stack: Stack) -> dict[str, list[tuple[str, str]]]:
    """Method and path of every route of each service."""
    import gradio

    known: dict[str, list[tuple[str, str]]] = {}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    documents = {
        "server": httpx.get(f"{stack.server}/openapi.json", auth=stack.login, timeout=60),
        "api": httpx.get(f"{stack.pages['api']}/openapi.json", headers=headers, timeout=60),
        "worker": httpx.get(f"{stack.pages['worker']}/openapi.json", timeout=60),
    }
    for name, document in documents.items():
        base = "/api" if name == "server" else ""
        known[name] = [(method.upper(), base + path) for path, methods in document.json()["paths"].items() for method in methods]
        common = (
            "/",
            "/docs",
            "/redoc",
            "/openapi.json",
            "/metrics",
            f"{base}/docs",
            f"{base}/openapi.json",
            "/ui-settings",
            "/v2/ui-settings",
        )
        known[name] += [("GET", path) for path in common]
    pages = gradio.routes.App.create_app(gradio.Blocks()).openapi()["paths"]
    of_a_page = [(method.upper(), path) for path, methods in pages.items() for method in methods]
    assert len(known["server"]) > 150 and len(known["api"]) > 6 and len(of_a_page) > 50
    return known | {name: of_a_page for name in ("demo", "review", "open")}


def filled(stack: Stack, path: str, ids: dict[str, str]) -> str:
    """A route with what exists in place of its parameters."""
    for name in re.findall(r"{([^}]*)}", path):
        kind = "deployment" if "deployment" in path else "flow_run" if "flow_run" in path else "flow" if "flow" in path else "pool"
        value = str(stack.file) if "path" in name else "machines" if "name" in name else ids[kind]
        path = path.replace(f"{{{name}}}", value)
    return path


def fetched(client: httpx.Client, method: str, url: str, headers: dict[str, str], content: bytes | None) -> tuple[int, str]:
    """The status of an answer and its text, at the most 300 kB, as far as it comes in half a minute: it may be a stream without an end."""
    got = ""
    with client.stream(method, url, headers=headers, content=content) as answer, suppress(httpx.ReadTimeout):
        for part in answer.iter_text():
            got += part
            if len(got) > 300_000:
                break
    return answer.status_code, got


def test_without_login_or_token_nothing_is_read_made_or_changed(stack: Stack) -> None:
    """Every route of every service that it documents, as a process or a web page of this machine asks for it."""
    before, routes = stack.everything(), routes_of(stack)
    [deployment] = stack.ask("POST", "deployments/filter", {})
    runs = stack.ask("POST", "flow_runs/filter", {})
    ids = {"deployment": deployment["id"], "flow_run": runs[0]["id"], "flow": deployment["flow_id"], "pool": deployment["id"]}
    evil = make_evil(stack)
    wish = {"name": "evil", "flow_id": ids["flow"], "deployment_id": ids["deployment"], "work_pool_name": "machines", "type": "process"}
    wish |= {
        "parameters": {"pipeline": "small", "repository": str(evil)},
        "state": {"type": "SCHEDULED"},
        "enforce_parameter_schema": False,
    }
    wish |= {"data": ["flagged"], "fn_index": 0, "event_data": None, "session_hash": "x"}
    body = json.dumps(wish).encode()
    for name, known in routes.items():
        page, opened = stack.pages[name], 0
        with httpx.Client(base_url=page, timeout=30) as client:
            for method, path in dict.fromkeys(known):
                asked = filled(stack, path, ids)
                for headers in FOREIGN:
                    if name == "open" and not {"Host", "Origin"} & headers.keys():
                        continue  # it answers the processes of this machine
                    content = body if method in ("POST", "PUT", "PATCH", "DELETE") else None
                    status, text = fetched(
                        client, method, asked, {"Content-Type": "application/json", **headers} if content else headers, content
                    )
                    free = (name, path) in OPEN or bool(name in DATALESS and DATALESS[name].fullmatch(path))
                    assert not 200 <= status < 300 or free, (name, method, asked, headers, status, text[:300])
                    stack.refuse_leak(text, name, method, asked, headers)
                    opened += free
                    COUNTS[f"stack, {name}", "answered, by design" if free else "refused"] += 1
            for path in climbing(stack.file):
                for host in ("127.0.0.1", "evil.example"):
                    address = ("127.0.0.1", int(page.rpartition(":")[2]))
                    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                    stack.refuse_leak(sent(address, iter([request])), name, path)
                    COUNTS[f"stack, {name}", "refused"] += 1
    for method, path in (
        ("POST", "/api/health/../flow_runs/filter"),
        ("POST", "/api//flow_runs/filter"),
        ("POST", "/api/%66low_runs/filter"),
        ("POST", "//api/flow_runs/filter"),
        ("POST", "/api/flow_runs/filter/../../health"),
        ("POST", "/api/api/flow_runs/filter"),
        ("GET", f"/api/flow_runs/{ids['flow_run']}?/api/health"),
        ("GET", f"/api/health/../flow_runs/{ids['flow_run']}"),
    ):
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1/api/health\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        answer = sent(("127.0.0.1", int(stack.pages["server"].rpartition(":")[2])), iter([head.encode(), b"Connection: close\r\n\r\n{}"]))
        assert not answer.startswith(b"HTTP/1.1 2"), (path, answer)
        stack.refuse_leak(answer, path)
    assert stack.everything() == before
    assert not list(stack.top.rglob("pwned*"))


def make_evil(stack: Stack) -> Path:
    """A repository whose code would leave a file."""
    evil = stack.top / "evil"
    (evil / "flows").mkdir(parents=True)
    (evil / ".dvc").mkdir()
    for name in ("flows/__init__.py", "flows/cli/__init__.py", "sitecustomize.py"):
        (evil / name).write_text(f"open({str(stack.top / 'pwned')!r}, 'w')\n")
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=evil, check=True)
    commit(evil)
    return evil


def test_files_come_into_a_page_and_out_of_it_by_its_own_folder_alone(stack: Stack) -> None:
    """Of the page without a token, as any process of this machine reaches it."""
    before = {file for file in stack.top.rglob("*") if "changepair-review" not in str(file) and "prefect" not in file.parts}
    with httpx.Client(base_url=stack.pages["open"], timeout=20) as client:
        for name in ("../../climbed.png", "/tmp/../climbed.png", "..%2fclimbed.png", "a/../../../climbed.png"):
            answer = client.post("/gradio_api/upload", files={"files": (name, black_png(16))})
            if answer.is_success:
                [kept] = answer.json()
                assert Path(kept).resolve().is_relative_to(stack.top) and "uploads" in Path(kept).parts, kept
        for path in (str(stack.file), str(stack.top / "project/pipelines.yaml"), str(stack.top / "prefect/changepair-login")):
            for route in (f"/gradio_api/file={path}", f"/gradio_api/proxy={stack.server}/health", f"/gradio_api/stream/{path}"):
                answer = client.get(route)
                assert not answer.is_success, (route, answer.text[:200])
                COUNTS["stack, files", "refused"] += 1
        for route in ("vibe-edit", "vibe-code", "undo-vibe-edit"):  # of a mode of Gradio in which a page edits its own code
            wish = {"prompt": "x", "code": f"open({str(stack.top / 'pwned')!r}, 'w')", "session_id": "x"}
            assert not client.post(f"/gradio_api/{route}/", json=wish).is_success
            COUNTS["stack, files", "refused"] += 1
    after = {file for file in stack.top.rglob("*") if "changepair-review" not in str(file) and "prefect" not in file.parts}
    assert after == before


def sockets_of_the_server() -> list[str]:
    """Paths of the websockets of Prefect's API."""
    found = [f"{router.prefix}{route.path.removeprefix(router.prefix)}" for router in API_ROUTERS for route in router.routes
             if type(route).__name__ == "APIWebSocketRoute"]  # fmt: skip
    assert {"/events/in", "/events/out"} <= set(found) and len(found) >= 4, found
    return [path.replace("{work_pool_name}", "machines") for path in found]


def test_no_websocket_opens_without_the_login(stack: Stack) -> None:
    event = {"occurred": "2026-11-28T00:00:00Z", "event": "changepair.drifted", "id": "0" * 8 + "-0000-4000-8000-" + "0" * 12}
    event |= {"resource": {"prefect.resource.id": "changepair.pipeline.small"}, "payload": {}}
    openings: list[Any] = [
        event,
        {"type": "auth"},
        {"type": "auth", "token": ""},
        {"type": "auth", "token": "changepair:"},
        {"type": "auth", "token": ["changepair"]},
        {"type": "auth", "token": None},
        [],
        "[" * 100_000,
    ]
    before = stack.everything()
    for name, page in stack.pages.items():
        address = page.replace("http://", "ws://")
        paths = [f"/api{path}" for path in sockets_of_the_server()] if name == "server" else ["/", "/gradio_api/queue/join", "/queue/join"]
        for path in paths:
            for opening in openings:
                for options in ({"subprotocols": ["prefect"]}, {}, {"subprotocols": ["prefect"], "origin": "https://evil.example"}):
                    got: list[Any] = []
                    with suppress(WebSocketException, OSError), connect(address + path, open_timeout=10, **options) as client:
                        client.send(opening if isinstance(opening, str) else json.dumps(opening))
                        client.send(json.dumps(event))
                        while True:
                            got.append(client.recv(timeout=10))
                    assert not got, (path, opening, got)
                    COUNTS["stack, websockets", "refused"] += 1
    with connect(f"{stack.server.replace('http://', 'ws://')}/events/out", subprotocols=["prefect"]) as client:  # type: ignore[list-item]
        client.send(json.dumps({"type": "auth", "token": ":".join(stack.login)}))
        assert json.loads(client.recv(timeout=10)) == {"type": "auth_success"}  # as it does for the user
    sizes = {pid: memory(pid, "VmRSS") for pid, name in stack.alive().items() if name == "server"}

    def bomb(size: int) -> None:
        """Messages of a size, as many as the server takes before it has read one."""
        address = stack.server.replace("http://", "ws://")
        with suppress(WebSocketException, OSError), connect(f"{address}/events/in", subprotocols=["prefect"], max_size=None) as client:  # type: ignore[list-item]
            for _ in range(10):
                client.send("[" + "1," * (size // 2))
            client.recv(timeout=10)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(bomb, [15_000_000, 1_900_000] * 60))
    assert all(memory(pid, "VmHWM") - size < GROWN for pid, size in sizes.items()), sizes
    assert stack.everything() == before
    assert not stack.ask("POST", "events/filter", {"filter": {"event": {"name": ["changepair.drifted"]}}})["events"]


def test_after_all_that_everything_works_for_the_user(stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    files = [("pictures", ("part.png", (stack.top / f"project/line/{SECRET}.png").read_bytes()))]
    answer = httpx.post(f"{stack.pages['api']}/v1/predict", files=files, data={"kit": SECRET}, headers=headers, timeout=60)
    assert answer.status_code == 200 and answer.json()["predictions"][0]["verdict"] == "anomalous"
    for name in ("demo", "review", "open"):
        assert httpx.get(f"{stack.pages[name]}/config", headers=headers if name != "open" else {}, timeout=30).status_code == 200
    assert all(process.is_running() for process in stack.processes.values())
    for _ in retrained(stack):
        pass


CLUSTER = """
import sys, time
from pathlib import Path
from prefect import flow, task
from changepair.flows.running.api import one_api
from changepair.flows.running.workers import task_runner
from changepair.flows.settings.pipelines import Execution

here = Path(sys.argv[1])

@task
def hold(number):
    (here / f"begun-{number}").touch()
    while not (here / "go").exists():
        time.sleep(0.1)

@flow
def held():
    for one in [hold.submit(number) for number in range(2)]:
        one.result()

if __name__ == "__main__":
    with one_api():
        held.with_options(task_runner=task_runner(Execution(runner="dask", workers=2)))()
"""
TASK = """
import os, signal, sys
from distributed import Client
from distributed.security import Security

signal.alarm(20)  # a port of HTTP may never answer
own = {"security": Security.temporary()} if sys.argv[1].startswith("tls") else {}
with Client(sys.argv[1], timeout=5, **own) as client:
    client.run_on_scheduler(os.mkdir, sys.argv[2])
"""


def test_the_dask_cluster_of_a_run_takes_no_task_from_others_and_shows_them_nothing(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(CLUSTER)
    quiet = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    with started(tmp_path, "python", "held.py", str(tmp_path), **quiet) as process:
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2, process=process, seconds=180, what="the work of both workers")
        cluster = Stack(tmp_path, tmp_path, "", ("", SECRET), {"cluster": psutil.Process(process.pid)})
        addresses = cluster.listening()
        assert len(addresses) >= 8 and {ip for ip, _port in addresses} == {"127.0.0.1"}
        for ip, port in addresses:
            for path in ("/", "/status", "/info/main/workers.html", "/info/main/logs.html", "/json/counts.json", "/metrics", "/health"):
                with suppress(httpx.HTTPError):
                    answer = httpx.get(f"http://{ip}:{port}{path}", timeout=5)
                    assert not answer.is_success, (port, path, answer.text[:200])
        asked = [f"{kind}://{ip}:{port}" for ip, port in addresses for kind in ("tcp", "tls")]
        with ThreadPoolExecutor(2) as pool:
            ended = list(
                pool.map(lambda one: subprocess.run([sys.executable, "-c", TASK, one, str(tmp_path / "pwned")], timeout=120), asked)
            )
        assert all(one.returncode for one in ended) and not (tmp_path / "pwned").exists()
        COUNTS["stack, Dask", "refused"] += len(asked)
        (tmp_path / "go").touch()
        assert process.wait(timeout=60) == 0, (tmp_path / "output.log").read_text()[-2000:]
