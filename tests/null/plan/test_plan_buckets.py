"""Shape buckets: against every possible set on small problems, by hand, and as properties of what is promised."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline import vision
from redline.errors import BadInput
from redline.plan import buckets
from redline.plan.buckets import Problem, choose_buckets, exact, greedy, largest_canvases, waste
from redline.records import Preprocess, ShapeShare, Traffic

LETTERBOX = Preprocess(size=(416, 416))
SHORTEST = Preprocess(resize="shortest-side", size=(320, 512))
SIDES = st.integers(1, 4000)


def traffic(*entries: tuple[int, int, float]) -> Traffic:
    total = sum(share for _, _, share in entries)
    return Traffic(shapes=tuple(ShapeShare(height=h, width=w, share=s / total) for h, w, s in entries), origin="test")


HALVES = traffic((480, 640, 0.5), (640, 640, 0.5))
TRAFFIC = st.lists(st.tuples(SIDES, SIDES, st.floats(0.01, 1)), min_size=1, max_size=12).map(lambda rows: traffic(*rows))
PREPROCESS = st.builds(
    Preprocess,
    resize=st.sampled_from(["letterbox", "shortest-side"]),
    size=st.sampled_from([(320, 320), (320, 448), (448, 320), (256, 640)]),  # whole strides, as a spec must give
    stride=st.sampled_from([32, 64]),
)


def random_problem(dice: random.Random, canvases: int, most: int, switch_cost: float = 0.0) -> Problem:
    """Canvases anywhere inside 640 x 640, which no resize gives: harder than real ones."""
    shapes: set[tuple[int, int]] = set()
    while len(shapes) < canvases:
        shapes.add((32 * dice.randint(1, 20), 32 * dice.randint(1, 20)))
    weights = [dice.random() ** 2 for _ in shapes]
    return Problem(
        canvases=tuple(sorted(shapes)),
        shares=tuple(weight / sum(weights) for weight in weights),
        largest=((640, 640),),
        most=most,
        switch_cost=switch_cost,
    )


def least_cost(problem: Problem) -> float:
    """Every set of every grid shape, priced from scratch."""
    grid = [*itertools.product({h for h, _ in problem.canvases}, {w for _, w in problem.canvases})]
    best = float("inf")
    for count in range(problem.most):
        for chosen in itertools.combinations(grid, count):
            cost = problem.switch_cost * (count + 1)
            for (height, width), share in zip(problem.canvases, problem.shares, strict=True):
                cost += share * min(h * w for h, w in (*chosen, (640, 640)) if h >= height and w >= width) / 640**2
            best = min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(30))
def test_exact_is_the_best_of_all_sets(seed: int) -> None:
    dice = random.Random(seed)
    problem = random_problem(dice, dice.randint(1, 5), dice.randint(1, 4), dice.choice([0.0, 0.01, 0.05]))
    found = exact(problem, greedy(problem))
    assert found is not None
    assert problem.cost(found) == pytest.approx(least_cost(problem), abs=1e-9)
    assert exact(problem, problem.largest) is not None
    assert problem.cost(exact(problem, problem.largest) or ()) == pytest.approx(problem.cost(found), abs=1e-9)


def test_greedy_is_close_to_exact() -> None:
    """Its excess cost over 240 random problems of 4 to 14 canvases and 2 to 6 buckets: at most 12 %, 1 % on average."""
    dice, gaps = random.Random(1), []
    for _ in range(240):
        problem = random_problem(dice, dice.randint(4, 14), dice.randint(2, 6))
        found = greedy(problem)
        best = exact(problem, found)
        assert best is not None
        assert len(found) <= problem.most
        gaps.append(problem.cost(found) / problem.cost(best) - 1)
    told = (
        f"greedy: largest excess {max(gaps):.2%}, mean {statistics.mean(gaps):.2%}, optimal in {gaps.count(0.0)} of {len(gaps)}"
    )
    assert min(gaps) >= -1e-12, told
    assert max(gaps) <= 0.12, told
    assert statistics.mean(gaps) <= 0.01, told


def test_the_exact_search_gives_up_after_its_work() -> None:
    problem = random_problem(random.Random(0), 14, 5)
    assert exact(problem, greedy(problem), work=100) is None


def test_then_the_greedy_set_is_taken_and_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_buckets(HALVES, LETTERBOX, most=2).exact
    monkeypatch.setattr(buckets, "exact", lambda problem, known: None)
    found = choose_buckets(HALVES, LETTERBOX, most=2)
    assert not found.exact
    assert found.policy == ((320, 416), (416, 416))


def test_waste_by_hand() -> None:
    """Half 480 x 640 (312 x 416 in 320 x 416), half square (416 x 416)."""
    found = choose_buckets(HALVES, LETTERBOX, most=5)
    assert [(b.height, b.width, b.share) for b in found.buckets] == [(320, 416, 0.5), (416, 416, 0.5)]
    assert found.waste == pytest.approx((0.5 * 320 / 416 + 0.5) / (0.5 * 312 / 416 + 0.5) - 1)
    assert found.waste_minimal == found.waste
    assert found.waste_fixed == pytest.approx(1 / 0.875 - 1)


@pytest.mark.parametrize(("switch_cost", "count"), [(0.0, 2), (0.115, 2), (0.116, 1), (1.0, 1)])
def test_a_bucket_must_save_its_price(switch_cost: float, count: int) -> None:
    """The second bucket saves 0.5 * (1 - 320 / 416) = 0.1154 of the largest canvas."""
    assert len(choose_buckets(HALVES, LETTERBOX, most=5, switch_cost=switch_cost).buckets) == count


def test_a_square_image_costs_no_bucket_of_its_own_where_both_orientations_need_one() -> None:
    found = choose_buckets(traffic((480, 640, 0.5), (640, 480, 0.4), (640, 640, 0.1)), LETTERBOX, most=3)
    assert found.policy == ((320, 416), (416, 320), (416, 416))
    assert [b.share for b in found.buckets] == pytest.approx([0.5, 0.4, 0.1])


@given(traffic=TRAFFIC, preprocess=PREPROCESS, most=st.integers(2, 6), unseen=st.tuples(SIDES, SIDES))
@settings(max_examples=150)
def test_every_image_is_held_by_the_smallest_bucket(
    traffic: Traffic, preprocess: Preprocess, most: int, unseen: tuple[int, int]
) -> None:
    found = choose_buckets(traffic, preprocess, most=most)
    assert len(found.policy) <= most
    assert set(largest_canvases(preprocess)) <= set(found.policy)
    for source in [(s.height, s.width) for s in traffic.shapes] + [unseen]:
        need = vision.input_size(source, preprocess, "minimal")
        size = vision.input_size(source, preprocess, found.policy)
        assert size[0] >= need[0]
        assert size[1] >= need[1]
        assert not [b for b in found.policy if b[0] >= need[0] and b[1] >= need[1] and b[0] * b[1] < size[0] * size[1]]


@given(traffic=TRAFFIC, preprocess=PREPROCESS)
@settings(max_examples=100)
def test_waste_figures_agree(traffic: Traffic, preprocess: Preprocess) -> None:
    found = choose_buckets(traffic, preprocess, most=4, switch_cost=0.0)
    own = sum(s.share * vision.pixels((s.height, s.width), preprocess, "minimal")[0] for s in traffic.shapes)
    assert sum(b.share for b in found.buckets) == pytest.approx(1.0)
    assert found.waste == pytest.approx(sum(b.share * b.height * b.width for b in found.buckets) / own - 1)
    assert -1e-9 <= found.waste_minimal <= found.waste + 1e-9 <= found.waste_fixed + 2e-9
    enough = choose_buckets(traffic, preprocess, most=len(traffic.shapes) + 2, switch_cost=0.0)
    assert enough.waste == pytest.approx(found.waste_minimal)
    fewer = choose_buckets(traffic, preprocess, most=3, switch_cost=0.0)
    assert enough.waste - 1e-9 <= found.waste <= fewer.waste + 1e-9 or not (found.exact and fewer.exact)


@given(rows=st.lists(st.tuples(SIDES, SIDES, st.floats(0.01, 1)), min_size=1, max_size=10), order=st.randoms())
@settings(max_examples=60)
def test_the_order_of_the_traffic_does_not_matter(rows: list[tuple[int, int, float]], order: random.Random) -> None:
    shapes = list(traffic(*rows).shapes)
    other = list(shapes)
    order.shuffle(other)
    pair = [choose_buckets(Traffic(shapes=tuple(s), origin="test"), LETTERBOX, most=3) for s in (shapes, other)]
    assert pair[0] == pair[1]


def test_stretched_images_have_one_shape() -> None:
    stretched = Preprocess(resize="stretch", size=(300, 400))
    found = choose_buckets(HALVES, stretched, most=3)
    assert found.policy == ((300, 400),)
    assert found.waste == found.waste_fixed == 0.0


def test_waste_of_a_policy_that_holds_too_little() -> None:
    with pytest.raises(BadInput) as error:
        waste(HALVES, LETTERBOX, ((320, 416),))
    assert error.value.code == "shape-bucket"


@pytest.mark.parametrize(
    ("seen", "preprocess", "most", "switch_cost", "code"),
    [
        (HALVES, LETTERBOX, 0, 0.0, "bucket-limit"),
        (HALVES, SHORTEST, 1, 0.0, "bucket-limit"),  # one for each orientation
        (HALVES, LETTERBOX, 2, -0.1, "bucket-limit"),
        (HALVES, LETTERBOX, 2, float("nan"), "bucket-limit"),
        (HALVES, Preprocess(resize="none"), 2, 0.0, "bucket-canvas"),
        (Traffic(shapes=(), origin="traffic.csv"), LETTERBOX, 2, 0.0, "bucket-traffic"),
    ],
)
def test_what_has_no_buckets(seen: Traffic, preprocess: Preprocess, most: int, switch_cost: float, code: str) -> None:
    with pytest.raises(BadInput) as error:
        choose_buckets(seen, preprocess, most=most, switch_cost=switch_cost)
    assert error.value.code == code
