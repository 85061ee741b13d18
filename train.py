"""Train a student from a teacher: ``accelerate launch train.py --teacher rgb_r3d50 --student flow_r3d18``."""

from crossdistill.errors import friendly_errors


@friendly_errors
def main() -> None:
    """Check the installation, then run ``crossdistill.recipes.run``."""
    from crossdistill.utils.environment import require_matched_torch

    require_matched_torch()
    from crossdistill.recipes.run import main as train

    train()


if __name__ == "__main__":
    main()
