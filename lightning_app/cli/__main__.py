"""python -m lightning_app.cli, as main.py."""

from lightning_app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
