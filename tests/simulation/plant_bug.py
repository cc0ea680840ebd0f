#!/usr/bin/env python3
"""Copies a source file with one piece of its text replaced: plant_bug.py IN OUT OLD NEW.

Fails unless the piece is there exactly once, so that a planted bug cannot silently vanish when the
code around it changes.
"""

import pathlib
import sys


def main():
    source, output, old, new = sys.argv[1:]
    text = pathlib.Path(source).read_text()
    if text.count(old) != 1:
        sys.exit(f"plant_bug: {source} has {text.count(old)} times, not once: {old!r}")
    planted = text.replace(old, new)
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(output).write_text(planted)


if __name__ == "__main__":
    main()
