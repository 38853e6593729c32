"""One file per command of main.py."""
