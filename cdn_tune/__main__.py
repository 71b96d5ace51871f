"""``python -m cdn_tune`` is ``cdn-tune``."""

from cdn_tune.cli import main

main()
