"""The command line: one file a command; `main` runs one."""

from lightning_app.cli.dispatch import main

__all__ = ["main"]
