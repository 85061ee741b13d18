"""Child processes that hang, crash or print."""

import sys

import pytest

from crossdistill.errors import UserError
from data_prep.pipeline.guard import Crashed, Guard, TookTooLong


@pytest.fixture
def guard():
    made = Guard("guard_answers")
    yield made
    made.stop()


def test_guard__one_child_answers_several_requests(guard):
    first, second = (guard.ask({"do": f'"{i}" 視頻'}, time_limit_seconds=60) for i in (1, 2))
    assert (first["echo"], second["echo"]) == ('"1" 視頻', '"2" 視頻')
    assert first["pid"] == second["pid"]


def test_guard__hang_or_crash_loses_one_request_only(guard):
    before = guard.ask({"do": "work"}, time_limit_seconds=60)
    with pytest.raises(TookTooLong):
        guard.ask({"do": "hang"}, time_limit_seconds=0.3)
    with pytest.raises(Crashed, match="SIGSEGV"):
        guard.ask({"do": "crash"}, time_limit_seconds=60)
    with pytest.raises(Crashed, match="exit status 1"):
        guard.ask({"do": "fail"}, time_limit_seconds=60)
    after = guard.ask({"do": "work"}, time_limit_seconds=60)
    assert after["echo"] == "work" and after["pid"] != before["pid"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_guard__memory_limit_is_an_error_in_the_child(guard):
    request, mib = {"do": "allocate", "bytes": 300 << 20}, 1 << 20
    allocated = [
        guard.ask(request, time_limit_seconds=60, memory_limit_bytes=limit)["bytes"]
        for limit in (200 * mib, 400 * mib, 200 * mib, None)
    ]
    assert allocated == [0, 300 * mib, 0, 300 * mib]


def test_guard__child_that_does_not_start_is_an_error():
    with pytest.raises(UserError, match="did not start"):
        Guard("no_such_module").ask({}, time_limit_seconds=60)
