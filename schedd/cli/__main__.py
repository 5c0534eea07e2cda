"""`python -m schedd.cli` is `schedd`."""

import sys

from schedd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
