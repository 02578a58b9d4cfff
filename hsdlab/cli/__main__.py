"""`python -m hsdlab.cli`: the same as `python evaluate.py`."""

from hsdlab.cli.evaluate import main

if __name__ == "__main__":
    main()
