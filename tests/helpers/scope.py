"""What is run each time, and what only before a release and once a week: `UFTLAB_TESTS=all make test`."""

import os

ALL = os.environ.get("UFTLAB_TESTS") == "all"
