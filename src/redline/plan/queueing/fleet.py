"""A fleet on paper: nodes behind a balancer for a demand, what it costs, and what the balancer's policy does to the tail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from redline.errors import BadInput
from redline.plan.queueing.paths import simulate
from redline.plan.queueing.rate import highest_rate
from redline.records import BalancerEffect, FleetAnswer, NodeLimit, Routing, ServedPath

POLICIES: tuple[Routing, ...] = ("random", "round-robin", "two-choices", "shortest")
SAMPLE = 8
"""Nodes that are simulated together: a policy's effect on the tail is nearly all there with a few."""


def fleet(
    node: ServedPath,
    *,
    demand_per_s: float,
    p95_ms: float,
    balancer: Routing = "two-choices",
    spare: Literal["none", "node", "zone"] = "node",
    zones: int = 3,
    usd_per_gpu_hour: float | None = None,
    limit: NodeLimit | None = None,
    policies: Sequence[Routing] = POLICIES,
    requests: int = 200_000,
    seed: int = 0,
) -> FleetAnswer:
    """`node`: one node's path. `spare`: what may be lost while the demand stays within P95; nodes are even over `zones`.
    `limit`: of the node besides its GPUs, which no rate exceeds.

    Rates come from `SAMPLE` nodes behind the policy, and the fleet is as many nodes as the demand needs at that rate: the
    network, the balancer's own limits and uneven traffic are not in it. `balancers` compares policies at the load after the
    loss. Raises BadInput: sim-fleet (also where no rate at all is within P95) and as `highest_rate`.
    """
    price_sound = usd_per_gpu_hour is None or (usd_per_gpu_hour >= 0 and math.isfinite(usd_per_gpu_hour))
    if not (demand_per_s > 0 and math.isfinite(demand_per_s) and zones >= 2 and price_sound):
        got = f"demand {demand_per_s}/s, {zones} zones, {usd_per_gpu_hour} USD"
        raise BadInput(
            "sim-fleet", "a demand that makes no fleet", got=got, allowed="above 0/s, 2 or more zones, 0 or more USD"
        )
    few = replace(node, nodes=SAMPLE, balancer=balancer)
    answer = highest_rate(few, p95_ms=p95_ms, requests=requests, replications=3, seed=seed)
    rate = answer.rate_per_s.value / SAMPLE
    bites = limit is not None and limit.per_s is not None and limit.per_s < rate
    rate = limit.per_s if limit is not None and limit.per_s is not None and bites else rate
    if rate == 0:
        raise BadInput("sim-fleet", "no number of such nodes meets the objective", got=answer.reason, fix="change the node")
    needed = math.ceil(demand_per_s / rate)
    nodes = with_spare(needed, spare, zones)
    left = nodes - lost(nodes, spare, zones)
    gpus = nodes * node.gpus
    cost = None if usd_per_gpu_hour is None else usd_per_gpu_hour * gpus
    effects = tuple(_effect(node, policy, demand_per_s / left, requests, seed) for policy in policies)
    return FleetAnswer(
        demand_per_s=demand_per_s,
        balancer=balancer,
        gpus_per_node=node.gpus,
        limit=f"{limit.title}: {limit.formula}" if limit is not None and bites else "",
        rate_per_node=rate,
        nodes_needed=needed,
        nodes=nodes,
        headroom={"none": "none", "node": "one node may fail", "zone": f"one of {zones} zones may fail"}[spare],
        load_per_node=demand_per_s / nodes,
        load_after_loss=demand_per_s / left,
        gpus=gpus,
        usd_per_hour=cost,
        usd_per_million=None if cost is None else cost / (demand_per_s * 3600) * 1e6,
        balancers=effects,
    )


def lost(nodes: int, spare: Literal["none", "node", "zone"], zones: int) -> int:
    """Nodes that go with the largest part that may fail."""
    return {"none": 0, "node": 1, "zone": math.ceil(nodes / zones)}[spare]


def with_spare(needed: int, spare: Literal["none", "node", "zone"], zones: int) -> int:
    """Fewest nodes of which `needed` are left after the loss."""
    nodes = needed
    while nodes - lost(nodes, spare, zones) < needed:
        nodes += 1
    return nodes


def _effect(node: ServedPath, policy: Routing, rate: float, requests: int, seed: int) -> BalancerEffect:
    found = simulate(replace(node, nodes=SAMPLE, balancer=policy, rate_per_s=rate * SAMPLE), requests=requests, seed=seed)
    return BalancerEffect(policy=policy, nodes=SAMPLE, rate_per_node=rate, p95_ms=found.p95_ms, p99_ms=found.p99_ms)
