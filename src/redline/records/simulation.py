"""A served path as a queueing model, and what a simulation of it says. Standard library only."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

from redline.records.run import Candidate

Routing = Literal["shared", "random", "round-robin", "shortest", "two-choices"]
"""Who takes a request. shared: one queue for all; the others choose a queue when it comes. shortest: the one with the fewest
requests waiting and running; two-choices: the shorter of two drawn at random."""
Grouping = Literal["mixed", "equal"]
"""What one batch may hold. mixed: any shapes, each run in turn (the Python models of a release group them inside an execute);
equal: neighbours of one shape, since Triton's batcher cuts a batch where the next request's shape differs."""
Law = Literal["lognormal", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCurve:
    """Service time of one inference by its batch, alone on its device.

    Between measured batches the mean is linear; beyond the largest it goes on with the slope of the last two (a single point:
    in proportion to the batch); below the smallest it is that of the smallest, which is what padding to it costs.
    """

    points: tuple[tuple[int, float], ...]
    """(batch, mean milliseconds), batches ascending."""
    cv: float = 0.0
    """Standard deviation over mean of the service times of one batch size; 0: they are constant."""
    law: Law = "lognormal"
    """Their distribution where `cv` is above 0; exponential means a cv of 1."""
    ratios: tuple[float, ...] = ()
    """Measured instead of `cv`: quantiles of (time / mean of its batch) at evenly spaced levels from 0 to 1."""

    def ms(self, batch: int) -> float:
        """Mean service time of a batch, milliseconds."""
        at = bisect_left(self.points, (batch, float("-inf")))
        if at == 0:
            return self.points[0][1]
        if len(self.points) == 1:
            return self.points[0][1] * batch / self.points[0][0]
        (b0, t0), (b1, t1) = self.points[min(at, len(self.points) - 1) - 1 :][:2]
        return t0 + (t1 - t0) * (batch - b0) / (b1 - b0)

    def scaled(self, factor: float) -> LatencyCurve:
        """The same curve on a device that takes `factor` times as long."""
        return replace(self, points=tuple((batch, factor * ms) for batch, ms in self.points))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeLoad:
    """One network shape of the traffic."""

    name: str = "any"
    share: float = 1.0
    """Of the requests; shares are normalised."""
    curve: LatencyCurve
    decode_ms: float = 0.0
    """Of one request in the host stage, on one worker."""
    input_bytes: int = 0
    """Copied to the device for each request; 0: the copy is in the curve."""
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A unit is away from `at_s` for `seconds`; what it was running then is lost."""

    unit: Literal["instance", "gpu", "node"]
    index: int
    """Counted over the whole path, nodes first: GPU 5 of nodes of 4 GPUs is the second of the second node."""
    at_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPath:
    """Arrivals, host stage, batcher, copies and devices of one served model."""

    shapes: tuple[ShapeLoad, ...]
    rate_per_s: float = 0.0
    """Poisson arrivals."""
    trace_s: tuple[float, ...] = ()
    """Arrival times instead, ascending seconds; `rate_per_s` says nothing then."""
    decode_workers: int = 0
    """Of each node's host stage, first come first served; 0: decoding is no stage of its own."""
    decode_cv: float = 0.0
    """Lognormal."""
    max_batch: int = 1
    preferred: tuple[int, ...] = ()
    """Triton's preferred batch sizes; none is (max_batch,), as the server fills in."""
    delay_ms: float = 0.0
    """Longest wait for others."""
    queue_limit: int | None = None
    """Requests of one queue beyond those that its instances can hold (instances * max_batch); more are refused at once."""
    grouping: Grouping = "mixed"
    instances: int = 1
    """Of each GPU or slice; one batch each at a time."""
    streams: int = 1
    """Batches in flight of each instance."""
    slowdown: tuple[float, ...] = ()
    """Service time of each of 1, 2, 3 ... batches that compute at once on one GPU, over its time alone; the last value goes
    on in proportion. None: they do not disturb each other."""
    disturbed: tuple[tuple[int, float], ...] = ()
    """(batch, how many times more than `slowdown` says the others slow an execution of that size), ascending by batch; straight
    lines between, level beyond. Small batches suffer most where other work than the executions fills the cores. None: all
    alike."""
    rested: tuple[tuple[float, float], ...] = ()
    """(ms in which an instance has no batch, ms that its next one takes longer), ascending; straight lines between, level
    beyond. Its caches grow cold and cores sleep. None: an instance that has rested is as fast as ever."""
    link_gb_s: float | None = None
    """Host to device, one direction; None: copies take no time."""
    duplex: bool = True
    """Both directions at once."""
    gpus_per_link: int = 1
    gpus: int = 1
    queues: Routing = "shared"
    """Among the GPUs (slices) of a node."""
    slices: int = 1
    """MIG: each GPU is so many devices."""
    slice_slowdown: float = 1.0
    """Service time on a slice over that on the whole GPU."""
    overhead_ms: float = 0.0
    """Of each request, waiting for nothing: network, protocol."""
    outages: tuple[Outage, ...] = ()
    mean_up_s: float | None = None
    """Random outages of every instance: exponential time until the next; None: there are none."""
    mean_down_s: float = 0.0
    """Exponential too."""
    nodes: int = 1
    balancer: Routing = "round-robin"
    """Among nodes; their queues are never shared."""

    @property
    def devices(self) -> int:
        """Of a node."""
        return self.gpus * self.slices

    @property
    def lanes(self) -> int:
        """Batches in flight of one device at the most."""
        return self.instances * self.streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """95 % interval by batch means or replications."""

    value: float
    low: float
    high: float

    @property
    def relative(self) -> float:
        """Half the interval over the value."""
        return (self.high - self.low) / 2 / self.value if self.value else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Latencies are of answered requests, from arrival to answer, without the warm-up."""

    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    mean_ms: float
    achieved_per_s: float
    """Answers per second between the first and the last arrival after the warm-up."""
    mean_batch: float
    host_busy: float
    """Share of the time that a decode worker works."""
    lane_busy: float
    """Share of the time that an instance (stream) holds a batch."""
    device_busy: float
    """Share of the time that a device computes anything."""
    link_busy: float
    """Share of the time that a link copies; its two ways counted apart if it is duplex."""
    refused: float
    """Share of all requests."""
    failed: float
    """Share of all requests: lost with an instance."""
    requests: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateAnswer:
    """Highest rate within the objective; `rate_per_s.value` 0: not even one request at a time is within it."""

    rate_per_s: Estimate
    p95_ms: float
    """At that rate (at next to none, if that is 0)."""
    mean_batch: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A candidate as the model sees it before anything is measured, the most promising first."""

    candidate: Candidate
    p95_ms: float | None
    """At that rate; None: it was not simulated."""
    rate_per_s: float | None
    """Highest within the P95, or a bound on it; None: nothing is known."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerEffect:
    """A few nodes behind a policy at the same load per node."""

    policy: Routing
    nodes: int
    rate_per_node: float
    p95_ms: Estimate
    p99_ms: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAnswer:
    """Nodes for a demand, on paper. Rates are requests/s."""

    demand_per_s: float
    balancer: Routing
    gpus_per_node: int
    rate_per_node: float
    """Highest rate of one node among a few behind the balancer, within the objective and what else the node allows."""
    limit: str
    """What the node allows less of than its GPUs, with its number; "": nothing known."""
    nodes_needed: int
    """With nothing failed."""
    nodes: int
    """With the headroom."""
    headroom: str
    load_per_node: float
    """With all nodes up."""
    load_after_loss: float
    """With the headroom used up."""
    gpus: int
    usd_per_hour: float | None
    usd_per_million: float | None
    """Images, at the demand, all nodes paid."""
    balancers: tuple[BalancerEffect, ...]
