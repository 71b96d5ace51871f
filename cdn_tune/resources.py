"""What belongs to the package besides its modules: experiments, search spaces, cluster files, documentation."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# In an installed wheel they lie in the package; a checkout has them beside it.
ROOT = next(root for root in (_PACKAGE / "shipped", _PACKAGE.parent) if root.is_dir())
DOCS = ROOT / "docs"
