"""Closed forms and exact chains that the simulation is held against. Times in milliseconds, rates per millisecond."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np

from redline.plan.queueing.state import Floats


def erlang_c(servers: int, offered: float) -> float:
    """Probability that a request of M/M/c waits; `offered` = rate * service time < servers. By the recursion of Erlang B."""
    blocking = 1.0
    for count in range(1, servers + 1):
        blocking = offered * blocking / (count + offered * blocking)
    return blocking / (1 - offered / servers * (1 - blocking))


def m_m_c_sojourn(servers: int, rate: float, service: float, time: float) -> float:
    """P(time in the system > `time`) of M/M/c, first come first served: an exponential service after the wait."""
    waits, mu = erlang_c(servers, rate * service), 1 / service
    drain = servers * mu - rate
    alone = math.exp(-mu * time)
    if math.isclose(drain, mu):
        return alone * (1 + waits * mu * time)
    return alone + waits * mu / (drain - mu) * (alone - math.exp(-drain * time))


def m_d_1_wait(rate: float, service: float, time: float) -> float:
    """P(wait <= `time`) of M/D/1 (Erlang 1909): (1 - rho) * sum over k of (-x)**k / k! * exp(x), x = rate * (time - k service).

    The terms alternate and grow, hence the digits.
    """
    with localcontext() as context:
        context.prec = 50 + int(rate * time)
        lam, step, at = Decimal(rate), Decimal(service), Decimal(time)
        total, factorial = Decimal(0), Decimal(1)
        for k in range(int(time // service) + 1):
            factorial *= max(k, 1)
            x = lam * (at - k * step)
            total += (-x) ** k / factorial * x.exp() if k else x.exp()
        return float((1 - lam * step) * total)


def quantile(distribution: Callable[[float], float], level: float, step: float) -> float:
    """Time at which an ascending distribution reaches `level`, by doubling from `step` and bisection; to 12 digits."""
    low, high = 0.0, step
    if distribution(low) >= level:
        return low
    while distribution(high) < level:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if distribution(middle) >= level else (middle, high)
    return high


def m_d_c_mean_wait(servers: int, rate: float, service: float) -> float:
    """Mean wait of M/D/c, exact: all that are served now are gone one service time later, so that the number in the system
    after it is what waited plus what came (Crommelin 1932); then Little's law."""
    offered = rate * service
    states = 64 + int(servers + 40 * offered / (servers - offered))
    arrivals = _poisson(offered, states)
    chain = np.array([_shifted(arrivals, max(0, state - servers), states) for state in range(states)])
    waiting = np.maximum(np.arange(states) - servers, 0)
    return float(_stationary(chain) @ waiting) / rate


def batch_server(rate: float, times: Floats) -> tuple[float, float]:
    """Mean batch and mean time in the system of one server that takes at once what waits, at most len(times) - 1 requests, a
    batch b for `times`[b], arrivals Poisson: the chain of what waits at the ends of services, and renewal reward."""
    most = len(times) - 1
    states = 128 + int(30 * most / max(1e-3, 1 - rate * times[most] / most))
    taken = np.clip(np.arange(states), 1, most)
    came = {size: _poisson(rate * times[size], states) for size in range(1, most + 1)}
    rows = [_shifted(came[size], max(0, x - size), states) for x, size in enumerate(taken.tolist())]
    share = _stationary(np.array(rows))
    spent = times[taken]
    # Inside during a service: those there at its start (one, if it began with an arrival) and, on average, half of who come.
    area = float(share @ (np.maximum(np.arange(states), 1) * spent + rate * spent**2 / 2))
    cycle = float(share @ spent + share[0] / rate)
    return float(share @ taken), area / cycle / rate


def _poisson(mean: float, count: int) -> Floats:
    logs = np.arange(count) * math.log(mean) - mean - np.array([math.lgamma(k + 1) for k in range(count)])
    found: Floats = np.exp(logs)
    return found


def _shifted(row: Floats, by: int, states: int) -> Floats:
    """The row moved to the right; what falls off the end stays at the end."""
    found = np.zeros(states)
    found[by:] = row[: states - by]
    found[-1] += 1 - found.sum()
    return found


def _stationary(chain: Floats) -> Floats:
    size = len(chain)
    system = chain.T - np.eye(size)
    system[-1] = 1.0
    found: Floats = np.linalg.solve(system, np.eye(size)[-1])
    return found
