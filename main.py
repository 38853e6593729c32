"""The command line: python main.py {fit,validate,test,predict,export} --help."""

from lightning_app.cli.dispatch import main

if __name__ == "__main__":
    raise SystemExit(main())
