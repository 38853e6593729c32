"""The command line: one file per command; `main` runs one of them."""

from lightning_app.cli.dispatch import main

__all__ = ["main"]
