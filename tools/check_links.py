"""Checks that every relative link of the documents leads to something.

python tools/check_links.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def main() -> int:
    """1 if a link leads nowhere."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{document.relative_to(ROOT)}: {link}" for document in sorted(documents) for link in dead_links(document)
    ]
    print("\n".join(broken) if broken else f"every link of {len(documents)} documents leads somewhere")
    return 1 if broken else 0


def dead_links(document: Path) -> list[str]:
    """Relative links of `document` that lead nowhere."""
    links = LINK.findall(document.read_text())
    return [link for link in links if not (document.parent / link).exists()]


if __name__ == "__main__":
    sys.exit(main())
