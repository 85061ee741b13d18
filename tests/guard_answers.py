"""Requests of the tests, answered in a child process of ``data_prep.pipeline.guard``."""

import os
import signal
import time


def answer(request):
    print("output of a library")
    if request["do"] == "hang":
        time.sleep(60)
    if request["do"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request["do"] == "allocate":
        try:
            return {"bytes": len(bytes(request["bytes"]))}
        except MemoryError:
            return {"bytes": 0}
    if request["do"] == "fail":
        raise KeyError("a bug")
    return {"echo": request["do"], "pid": os.getpid()}
