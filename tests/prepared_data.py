"""Where the prepared data sets are, for the tests that read real texts: $HSDLAB_DATA; without it they are skipped."""

import os
from pathlib import Path

DATA = Path(os.environ.get("HSDLAB_DATA") or "no-HSDLAB_DATA")
REASON = "set HSDLAB_DATA to the folder of the prepared data sets (see `hsdlab data prepare`)"
