"""Turns pip's resolution report (standard input) into a lock file (standard output): exact versions, no origins."""

import json
import sys


def lock_lines(report: dict) -> list[str]:
    """List what a resolution installs.

    Args:
        report: of ``pip install --dry-run --ignore-installed --report -``.

    Returns:
        One ``name==version`` line a package, sorted; the project itself, which has a local path for origin, is left out.
    """
    found = [item for item in report["install"] if "dir_info" not in item["download_info"]]
    return sorted((f"{item['metadata']['name']}=={item['metadata']['version']}" for item in found), key=str.lower)


if __name__ == "__main__":
    print("# Made by `make lock`; every package of the environment, to be installed without dependency resolution.")
    print("\n".join(lock_lines(json.load(sys.stdin))))
