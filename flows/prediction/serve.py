"""Start the HTTP service: the command `changepair api`."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from changepair.flows.arguments import COUNT, check_options, listening, token_for
from changepair.flows.prediction import options
from changepair.flows.prediction.options import load, tell
from changepair.flows.prediction.page import add_address, memory_of
from changepair.tasks.common.bounds import MOST, Between
from changepair.tasks.common.errors import BadInput
from changepair.tasks.prediction.files import is_kit

SECONDS = Between(0.001, MOST)
EXAMPLES = """examples:
  changepair api --kit line-3
  changepair api --kits kits/ --port 8080            # every kit in the folder, by name
  changepair api                                     # clients send their prompts
  curl -F pictures=@part.png http://127.0.0.1:8000/v1/predict
  curl -F pictures=@normal.png http://127.0.0.1:8000/v1/prompts

If the environment variable CHANGEPAIR_API_TOKEN is set, clients must send this token. Otherwise only this machine can use the service.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "Serve a model over HTTP"
    description = (
        "Serve a model over HTTP. Clients send pictures, with prompts or the name of a kit. OpenAPI is at /docs, metrics at /metrics."
    )
    parser = options.add_command(commands, "api", serve, about, description, EXAMPLES)
    options.add(parser)
    parser.add_argument("--kits", type=Path, metavar="FOLDER", help="folder of kits that clients select by name")
    held = "the pictures and prompts of all clients, and the kits; larger requests get status 413"
    add_address(parser, 8000, held, about_port="port to listen on; 0 for any free port (default: %(default)s)")
    for option, default, what in (
        ("--batch-size", 8, "pictures scored at once"),
        ("--most-waiting", 64, "maximum number of waiting pictures; more get status 429"),
        ("--most-pictures", 32, "maximum number of pictures per request"),
        ("--most-megabytes", 64, "maximum size of a request in MB"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time limit of a request, which then gets status 504 (default: %(default)s)",
    )


def serve(arguments: argparse.Namespace) -> None:
    """Run the service until SIGTERM or Ctrl-C. Raises BadInput if something cannot be loaded, or the port is taken."""
    counts = ("batch_size", "most_waiting", "most_pictures", "most_megabytes")
    check_options(arguments, {**dict.fromkeys(counts, COUNT), "timeout": SECONDS})
    memory = memory_of(arguments)
    folders = sorted(one for one in arguments.kits.glob("*") if is_kit(one)) if arguments.kits is not None else []
    if arguments.kits is not None and not folders:
        raise BadInput(f"{arguments.kits}: contains no kits; create one with `changepair predict --write-kit {arguments.kits}/<name>`")
    with listening(arguments.host, arguments.port) as own:
        from changepair.flows.prediction.budget import return_freed_memory
        from changepair.flows.prediction.front import LOCAL, serve_app
        from changepair.flows.prediction.service import Limits, make_app
        from changepair.tasks.prediction.predictor import Predictor

        token = token_for(own)
        return_freed_memory()
        predictor = load(arguments)
        limits = Limits(
            pictures=arguments.most_pictures,
            megabytes=arguments.most_megabytes,
            waiting=arguments.most_waiting,
            memory=memory,
            seconds=arguments.timeout,
        )
        kits = {folder.name: Predictor.load(folder) for folder in folders}
        app = make_app(predictor, kits, limits=limits, batch_size=arguments.batch_size, token=token, hosts=LOCAL)
        host, port = own.getsockname()[:2]
        tell(f"serving {predictor.model.name} at http://{host}:{port}; documentation at http://{host}:{port}/docs")
        with suppress(KeyboardInterrupt):
            serve_app(app, own, ending_seconds=round(arguments.timeout) + 5)
