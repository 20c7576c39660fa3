"""The command `changepair api`: starts the service of flows.prediction.service."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from flows.arguments import COUNT, check_options, listening
from flows.prediction import options
from flows.prediction.options import load, tell
from tasks.common.bounds import MOST, Between
from tasks.common.errors import BadInput
from tasks.prediction.files import is_kit

TOKEN = "CHANGEPAIR_API_TOKEN"
SECONDS = Between(0.001, MOST)
EXAMPLES = f"""examples:
  changepair api --kit line-3
  changepair api --kits kits/ --port 8080            # every kit in the folder, by its name
  changepair api                                     # clients bring their prompts
  curl -F pictures=@part.png http://127.0.0.1:8000/v1/predict
  curl -F pictures=@normal.png http://127.0.0.1:8000/v1/prompts

The token that clients must send is read from the environment, {TOKEN}; without it there is none.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "api",
        help="serve a model over HTTP",
        description="Serves a model over HTTP: clients give prompts, or name a kit, and send pictures. OpenAPI is at /docs, what "
        "Prometheus reads at /metrics.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add(parser)
    parser.add_argument("--kits", type=Path, metavar="FOLDER", help="a folder of kits, which clients name")
    parser.add_argument("--host", default="127.0.0.1", help="which address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="%(default)s; 0 for any that is free")
    for option, default, what in (
        ("--batch-size", 8, "pictures that are scored at once"),
        ("--most-waiting", 64, "pictures that may wait; those beyond get 429"),
        ("--most-pictures", 32, "pictures a request"),
        ("--most-megabytes", 64, "a request's size"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{what} (%(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="until a request is given up with 504 (%(default)s)")
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> None:
    """Runs the service until SIGTERM or Ctrl-C. Raises BadInput for what cannot be loaded, and a port that is taken."""
    counts = ("batch_size", "most_waiting", "most_pictures", "most_megabytes")
    check_options(arguments, {**dict.fromkeys(counts, COUNT), "timeout": SECONDS})
    folders = _kits(arguments.kits)
    with listening(arguments.host, arguments.port) as own:
        predictor = load(arguments)
        import uvicorn

        from flows.prediction.service import Limits, make_app
        from tasks.prediction.predictor import Predictor

        limits = Limits(
            pictures=arguments.most_pictures,
            megabytes=arguments.most_megabytes,
            waiting=arguments.most_waiting,
            seconds=arguments.timeout,
        )
        kits = {folder.name: Predictor.load(folder) for folder in folders}
        app = make_app(predictor, kits, limits=limits, batch_size=arguments.batch_size, token=os.environ.get(TOKEN) or None)
        host, port = own.getsockname()[:2]
        tell(f"serving {predictor.model.name} at http://{host}:{port}; its page is /docs")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=round(arguments.timeout) + 5))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[own])


def _kits(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    found = sorted(one for one in folder.glob("*") if is_kit(one))
    if not found:
        raise BadInput(f"{folder}: no folder with kits; `changepair predict --write-kit {folder}/<name>` writes one")
    return found
