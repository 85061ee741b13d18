"""``python -m crossdistill COMMAND``: the same as ``crossdistill COMMAND``, for launchers that start modules."""

from __future__ import annotations

from crossdistill.commands.main import main

if __name__ == "__main__":
    main(prog="python -m crossdistill")
