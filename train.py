"""``crossdistill train`` for a clone: ``accelerate launch train.py --teacher rgb_r3d50 --student flow_r3d18``."""

from crossdistill.commands.main import main

if __name__ == "__main__":
    main(command="train", prog="python train.py")
