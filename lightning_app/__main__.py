"""The command line as a module: python -m lightning_app is the same as python main.py."""

from lightning_app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
