"""`python -m loupe_ext` is the command `loupe`."""

import sys

from loupe_ext.cli import main

sys.exit(main())
