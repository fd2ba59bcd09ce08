"""``python -m edgekd`` is the ``edgekd`` command."""

from __future__ import annotations

import sys

from edgekd.errors import MissingDependencyError


def main() -> int:
    """The command; where edgekd was installed without its requirements, to deploy bundles alone, it says so."""
    try:
        from edgekd import cli
    except ModuleNotFoundError as error:
        if str(error.name).startswith("edgekd"):
            raise
        print(
            f"error: {error.name} is not installed here: this environment runs bundles from Python (`from edgekd "
            "import deploy`) and no commands; install edgekd with its requirements",
            file=sys.stderr,
        )
        return MissingDependencyError.exit_code
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
