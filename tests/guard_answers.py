"""What a guarded child is asked in the tests."""

import os
import signal
import time


def answer(request):
    print("a library's chatter")
    if request["do"] == "hang":
        time.sleep(60)
    if request["do"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request["do"] == "fail":
        raise KeyError("a bug")
    return {"echo": request["do"], "pid": os.getpid()}
