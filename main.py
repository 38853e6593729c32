"""The command line: python main.py {fit,validate,test,predict,inspect,export} --help."""

from lightning_app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
