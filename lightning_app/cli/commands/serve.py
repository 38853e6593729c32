"""serve: a page and an OpenAI-style HTTP interface for a trained network, on this machine.

Stop it with Ctrl-C.
"""

import asyncio
import html
import ipaddress
import re
import sys
from dataclasses import fields

import torch
from jsonargparse.typing import NonNegativeInt

from lightning_app.cli.configs import config_group, split_configs
from lightning_app.cli.engine_options import add_engine_arguments, check_threads
from lightning_app.cli.loading import add_run_arguments, load_run
from lightning_app.cli.parsing import Parser
from lightning_app.errors import UserError, program
from lightning_app.export.page.page import page_html
from lightning_app.generation.sampling import GenerateOptions
from lightning_app.runs.checkpoint import TrainedModel
from lightning_app.serving.app import Service
from lightning_app.serving.batch import make_batch
from lightning_app.serving.completions import Limits


def make_parser() -> Parser:
    parser = Parser(prog=f"{program()} serve", description=__doc__)
    add = parser.add_argument
    add_run_arguments(parser)
    add(
        "--host",
        type=str,
        default="127.0.0.1",
        help="The address to listen at. With one that other machines reach, requests need a token.",
    )
    add("--port", type=NonNegativeInt, default=8000, help="The port; 0 for any free one.")
    add(
        "--token",
        type=str | None,
        help="What requests must send as Authorization: Bearer TOKEN (default: none for 127.0.0.1, "
        "else a random one, which is printed).",
    )
    add_engine_arguments(parser)
    parser.add_class_arguments(Limits)
    return parser


def main(argv: list[str]) -> int:
    from lightning_app.serving import server  # --help works without uvicorn

    configs, rest = split_configs(argv)
    config = make_parser().parse_args(rest)
    check_token(config.token)
    check_threads(config)
    with server.open_socket(config.host, int(config.port)) as listener:
        loaded = load_run(config, configs)
        trained = loaded.trained
        defaults = GenerateOptions().updated(
            **(config_group(configs, "generate") or trained.generation)
        )
        defaults.resolve()  # raises UserError for options that contradict each other
        page = make_page(trained)
        if torch.cuda.is_available() and config.weights == "float32":
            trained.gpt.cuda()
        address, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        name = loaded.name or loaded.path.stem
        service = Service(
            name,
            created=int(loaded.path.stat().st_mtime),
            tokenizer=trained.tokenizer,
            defaults=defaults,
            page=page,
            limits=Limits(**{f.name: config[f.name] for f in fields(Limits)}),
            token=config.token or (None if local else server.make_token()),
            local=local,
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        lines = lines_when_ready(service, f"http://{host}:{port}")
        return asyncio.run(
            server.serve(
                listener,
                service,
                lambda: make_batch(
                    trained.gpt,
                    service.limits.max_batch,
                    config.weights,
                    trained.unigram,
                    config.threads,
                ),
                on_ready=lambda: print(*lines, sep="\n", file=sys.stderr, flush=True),
            )
        )


def check_token(token: str | None) -> None:
    """Raises UserError for a token that a header could not have."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError("--token takes printable ASCII characters without spaces; give another one")


def make_page(trained: TrainedModel) -> str:
    """The exported page, which computes in the browser; one that says why not, if it cannot."""
    try:
        return page_html(trained)
    except UserError as error:
        return (
            f"<!doctype html><title>no page</title><p>There is no page: {html.escape(str(error))}. "
            "The interface is at /v1."
        )


def lines_when_ready(service: Service, address: str) -> list[str]:
    """What is printed once requests are answered."""
    query = f"/?token={service.token}" if service.token else ""
    lines = [
        f"serving {service.name}; Ctrl-C stops",
        f"  page       {address}{query}",
        f"  interface  {address}/v1",
    ]
    if service.token:
        lines.append(f"  token      {service.token}")
    if not service.local:
        lines.append("  other machines can connect; what they send and get is not encrypted")
    return lines
