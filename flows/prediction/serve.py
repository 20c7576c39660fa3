"""The command `changepair api`: start the service of changepair.flows.prediction.service."""

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
  changepair api --kits kits/ --port 8080            # every kit in the folder, by its name
  changepair api                                     # clients bring their prompts
  curl -F pictures=@part.png http://127.0.0.1:8000/v1/predict
  curl -F pictures=@normal.png http://127.0.0.1:8000/v1/prompts

Clients must send the token in the environment variable CHANGEPAIR_API_TOKEN. Without one, only this machine can use the service.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    about = "serve a model over HTTP"
    description = "Serves a model over HTTP: clients give prompts, or name a kit, and send pictures. OpenAPI at /docs, metrics at /metrics."
    parser = options.add_command(commands, "api", serve, about, description, EXAMPLES)
    options.add(parser)
    parser.add_argument("--kits", type=Path, metavar="FOLDER", help="a folder of kits, which clients name")
    held = "the pictures and prompts of all clients, and the kits; a request that needs more gets 413"
    add_address(parser, 8000, held, about_port="%(default)s; 0 for any that is free")
    for option, default, what in (
        ("--batch-size", 8, "pictures that are scored at once"),
        ("--most-waiting", 64, "pictures that may wait; those beyond get 429"),
        ("--most-pictures", 32, "pictures a request"),
        ("--most-megabytes", 64, "a request's size"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{what} (%(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="until a request is given up with 504 (%(default)s)")


def serve(arguments: argparse.Namespace) -> None:
    """Run the service until SIGTERM or Ctrl-C. Raises BadInput if something cannot be loaded, or the port is taken."""
    counts = ("batch_size", "most_waiting", "most_pictures", "most_megabytes")
    check_options(arguments, {**dict.fromkeys(counts, COUNT), "timeout": SECONDS})
    memory = memory_of(arguments)
    folders = sorted(one for one in arguments.kits.glob("*") if is_kit(one)) if arguments.kits is not None else []
    if arguments.kits is not None and not folders:
        raise BadInput(f"{arguments.kits}: no folder with kits; `changepair predict --write-kit {arguments.kits}/<name>` writes one")
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
        tell(f"serving {predictor.model.name} at http://{host}:{port}; its page is /docs")
        with suppress(KeyboardInterrupt):
            serve_app(app, own, ending_seconds=round(arguments.timeout) + 5)
