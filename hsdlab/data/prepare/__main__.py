"""`python -m hsdlab.data.prepare`: the same as `hsdlab data prepare`."""

import sys

from hsdlab.data.prepare import main
from hsdlab.errors import RunError, UserError

if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, UserError) and not isinstance(error, RunError) else 1)
