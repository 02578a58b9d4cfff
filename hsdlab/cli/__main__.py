"""`python -m hsdlab.cli`: the same as `hsdlab`."""

from hsdlab.cli.commands import main

if __name__ == "__main__":
    main()
