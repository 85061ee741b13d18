"""Child processes that hang, crash or print."""

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


def test_guard__child_that_does_not_start_is_an_error():
    with pytest.raises(UserError, match="did not start"):
        Guard("no_such_module").ask({}, time_limit_seconds=60)
