#!/usr/bin/env python3
"""Every planted bug is found within 10,000 job lives: planted_bugs_test.py BINARY...

Each binary is the simulation with one bug in its production code (CMakeLists.txt). Prints the table
of docs/reliability.md.
"""

import pathlib
import re
import subprocess
import sys

LIVES = 10000


def main():
    failures = 0
    for binary in sys.argv[1:]:
        name = pathlib.Path(binary).name.removeprefix("simulation-with-")
        run = subprocess.run([binary, "--lives", str(LIVES)], capture_output=True, text=True)
        lived = re.search(r"^(\d+) job lives in", run.stdout, re.MULTILINE)
        found = re.search(r"^seed (\d+): (.*)$", run.stdout, re.MULTILINE)
        if run.returncode != 1 or not lived or not found:
            print(f"{name}: NOT FOUND, exit code {run.returncode}\n{run.stdout[-2000:]}{run.stderr}")
            failures += 1
            continue
        print(f"| {name} | {lived[1]} | {found[1]} | {found[2]} |")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
