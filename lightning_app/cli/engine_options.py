"""Options of the CPU's engine, for the commands that generate: predict and serve."""

from typing import Any

from jsonargparse.typing import PositiveInt

from lightning_app.cli.parsing import Parser
from lightning_app.errors import UserError
from lightning_app.generation.cpu_engine import WeightFormat
from lightning_app.generation.numba_cache import max_threads


def add_engine_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--weights",
        type=WeightFormat,
        default="float32",
        help="Format of the weights on a CPU; smaller ones are faster, and rounded.",
    )
    parser.add_argument(
        "--threads",
        type=PositiveInt | None,
        help="On a CPU (default: measured while generating). The text does not depend on it.",
    )


def check_threads(config: Any) -> None:
    """Raises UserError for more threads than this machine can use."""
    if config.threads and config.threads > max_threads():
        raise UserError(f"--threads is {config.threads}; here it can be at most {max_threads()}")
