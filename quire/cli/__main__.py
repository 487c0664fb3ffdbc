"""`python -m quire.cli`, for where the installed `quire` script is not on the path."""

import sys

from quire.cli.main import main

sys.exit(main())
