"""Laws of the options that predict and serve have for the CPU's engine."""

import pytest

from lightning_app.cli.engine_options import add_engine_arguments, check_threads
from lightning_app.cli.parsing import Parser
from lightning_app.errors import UserError
from lightning_app.generation.numba_cache import max_threads


def parsed(*arguments: str):
    parser = Parser()
    add_engine_arguments(parser)
    return parser.parse_args(list(arguments))


def test_by_default_the_weights_are_exact_and_the_threads_are_measured():
    config = parsed()
    assert (config.weights, config.threads) == ("float32", None)
    check_threads(config)


def test_more_threads_than_the_machine_has_are_refused():
    check_threads(parsed("--threads", str(max_threads())))
    with pytest.raises(UserError, match=f"at most {max_threads()}"):
        check_threads(parsed("--threads", str(max_threads() + 1)))
