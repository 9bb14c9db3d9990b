"""Who answers: shares by counting, versions by name, whole records swapped."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.records import Routes
from redline.serve.gateway import RouteTable
from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.routing import Route, Router


def router(**routes: object) -> Router:
    return Router(RouteTable(Routes(**routes)))  # type: ignore[arg-type]


def test_a_tenth_is_exactly_every_tenth_request() -> None:
    one = router(active=1, canary=2, canary_share=0.1)
    picked = [one.pick().release for _ in range(1000)]
    assert [index for index, release in enumerate(picked) if release == 2] == list(range(9, 1000, 10))


@given(st.integers(0, 1000), st.integers(1, 400))
def test_any_share_is_kept_within_one_request_at_every_moment(thousandths: int, requests: int) -> None:
    one = router(active=1, canary=2, canary_share=thousandths / 1000)
    for sent in range(1, requests + 1):
        canary = one.pick().release == 2
        expected = thousandths * sent // 1000 - thousandths * (sent - 1) // 1000
        assert canary == bool(expected)


def test_the_active_release_answers_where_no_canary_has_a_share() -> None:
    assert {router(active=1, canary=2, canary_share=0.0).pick() for _ in range(50)} == {Route(release=1)}
    assert {router(active=1, previous=7, canary_share=1.0).pick() for _ in range(50)} == {Route(release=1)}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_named_version_goes_to_that_release_and_takes_no_turn_of_the_canary(version: int) -> None:
    one = router(active=1, previous=2, canary=3, canary_share=0.5)
    for _ in range(3):
        assert one.pick(version) == Route(release=version)
    assert [one.pick().release for _ in range(4)] == [1, 3, 1, 3]


@pytest.mark.parametrize(("routes", "version"), [({"active": 1}, 2), ({"active": 1, "previous": 2}, 0), ({}, 1)])
def test_a_version_that_is_not_loaded_is_not_found(routes: dict[str, int], version: int) -> None:
    with pytest.raises(Refused) as caught:
        router(**routes).pick(version)
    assert (caught.value.status, caught.value.code) == (404, "version-unknown")


def test_nothing_released_is_a_server_side_refusal_with_a_time_to_come_back() -> None:
    with pytest.raises(Refused) as caught:
        router().pick()
    assert (caught.value.status, caught.value.headers()) == (503, {"Retry-After": "5"})


def test_a_shadow_goes_to_the_canary_and_judges_it() -> None:
    one = router(active=1, previous=5, canary=2, shadow=True)
    assert one.pick() == Route(release=1, shadow=2, on_trial=2)
    assert one.pick(5) == Route(release=5)


def test_without_a_canary_the_active_release_is_on_trial_against_the_one_before() -> None:
    assert router(active=4, previous=3, shadow=True).pick() == Route(release=4, shadow=3, on_trial=4)
    assert router(active=4, shadow=True).pick() == Route(release=4)


def test_what_the_canary_answers_itself_is_not_shadowed() -> None:
    one = router(active=1, canary=2, canary_share=0.25, shadow=True)
    assert Counter(one.pick() for _ in range(400)) == {
        Route(release=1, shadow=2, on_trial=2): 300,
        Route(release=2): 100,
    }


def test_a_share_of_the_shadows_is_as_even() -> None:
    one = router(active=1, canary=2, shadow=True, shadow_share=0.1)
    copied = [index for index in range(100) if one.pick().shadow is not None]
    assert copied == list(range(9, 100, 10))


def test_swapped_routes_hold_from_the_next_request_and_are_counted_anew() -> None:
    table = RouteTable(Routes(active=1, canary=2, canary_share=0.5))
    one = Router(table)
    assert one.pick().release == 1
    table.routes = Routes(active=2, previous=1, canary=3, canary_share=0.5)
    assert [one.pick().release for _ in range(4)] == [2, 3, 2, 3]
