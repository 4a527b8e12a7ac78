from __future__ import annotations

import pytest

from coar_dist.cluster.calls import StartCall, UseCall
from coar_dist.cluster.plan_sharing import PlanSharing
from coar_dist.cluster.work import SharedPlan


def test_the_first_actor_chooses_and_the_others_wait() -> None:
    sharing = PlanSharing(SharedPlan(None, request="10 masks"))
    assert list(sharing.next_calls(3)) == []
    for actor in "abc":
        sharing.joined(actor)
    assert list(sharing.next_calls(3)) == [("a", StartCall("10 masks", 3, None))]
    assert list(sharing.next_calls(3)) == []
    assert sharing.needs_start
    sharing.started("plan")
    assert not sharing.needs_start
    assert list(sharing.next_calls(3)) == [("b", UseCall("plan")), ("c", UseCall("plan"))]
    sharing.joined("d")
    assert list(sharing.next_calls(3)) == [("d", UseCall("plan"))]
    assert list(sharing.next_calls(3)) == []


def test_the_duty_of_an_actor_that_is_gone_goes_to_another() -> None:
    sharing = PlanSharing(SharedPlan(None, request=None))
    for actor in "abc":
        sharing.joined(actor)
    sharing.left("b")  # before it is its turn
    for actor in "ac":
        assert list(sharing.next_calls(2)) == [(actor, StartCall(None, 2, None))]
        sharing.left(actor)
    assert sharing.needs_start


@pytest.mark.parametrize("must_start", [True, False])
def test_nobody_waits_for_a_plan_that_is_there(must_start: bool) -> None:
    sharing = PlanSharing(SharedPlan("plan", request=None, must_start=must_start))
    assert sharing.needs_start == must_start
    for actor in "ab":
        sharing.joined(actor)
    first = StartCall(None, 2, "plan") if must_start else UseCall("plan")
    assert list(sharing.next_calls(2)) == [("a", first), ("b", UseCall("plan"))]
