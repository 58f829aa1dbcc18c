"""``python -m trickle`` is ``trickle``."""

from __future__ import annotations

import sys

from trickle.cli import main

sys.exit(main())
