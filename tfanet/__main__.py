"""`python -m tfanet` is the `tfanet` command."""

from tfanet.cli import main

raise SystemExit(main())
