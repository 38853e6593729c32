"""Laws of UserError: it stays recognisable wherever it passes through."""

import pickle

from lightning_app.errors import UserError
from lightning_app.runs.checkpoint import CORRUPT_ERRORS


def test_a_users_error_is_not_mistaken_for_a_damaged_file():
    assert not issubclass(UserError, (*CORRUPT_ERRORS, OSError, AssertionError))


def test_a_users_error_keeps_its_message_between_processes():
    error = pickle.loads(pickle.dumps(UserError("--run a b: no; use another")))
    assert isinstance(error, UserError)
    assert str(error) == "--run a b: no; use another"
