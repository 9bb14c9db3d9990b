"""The state of a simulated path: two arrays in which every unit (node, queue, device, lane, link) has a block at one address,
and arrays of the requests. Few arrays, because compiled calls cost by how many they hand on. Times are milliseconds.

Change a column here and numba's cache of `core` does not notice: delete it (src/redline/plan/queueing/__pycache__).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Heap = list[tuple[float, int, int, int, int]]
"""(time, order of the pushes, kind, what, version): `what` is a request or the address of a unit."""

DECODED, TIMER, COPIED_IN, COMPUTED, COPIED_OUT = range(5)
SHARED, RANDOM, ROUND_ROBIN, SHORTEST, TWO_CHOICES = range(5)
REFUSED, FAILED = -1.0, -2.0
"""In place of the time of an answer."""

VERSION = 0
"""Of a unit's next event: an event of another version is void."""
INSIDE, UP, TURN = 1, 2, 3
"""Of a node or queue: requests inside, lanes that are up; of a node (`sums` for the nodes): the queue whose turn it was."""
NODE, HEAD, TAIL, WAITING, OPEN, HAVE, FULL, WANTED, FRONT, PAYLOADS, IDLE_AT, IDLE, RING = range(4, 17)
"""Of a queue: its node; first request in no payload, last request, how many are in none; the open payload, its size, whether it
may not grow, how many must wait to wake the batcher; first payload of the ring, how many; first idle lane, how many. From RING
on: payloads of three, and the idle lanes after them."""
NONE, STALE = -1, -2
"""Open payload of a queue: not begun; taken by an instance. Otherwise its place in the ring."""
PAYLOAD_FIRST, PAYLOAD_COUNT, PAYLOAD_CUT = range(3)
"""First request, how many, and 1 where it ended because the shape changed: nothing is merged into it."""
RUNNING, OWN_LANES, LINK = 1, 2, 3
"""Of a device: lanes that compute, its first lane, its link."""
STATE, FIRST, COUNT, DOWN, DEVICE, QUEUE = range(1, 7)
"""Of a lane: what it does, its batch, outages that hold it down, its device and queue."""
AT_REST, MOVING, COMPUTING = range(3)
LANE_SIZE, DEVICE_SIZE, LINK_SIZE, NODE_SIZE = 7, 4, 2, 4
EVENTS, BATCHES, SERVED = range(3)
"""Of the sums: pushes so far, batches begun and the requests in them."""

CHANGED = 0
"""Floats of a device: the time of its last change. Of a node: when each worker is free. Of a link: when each way is free."""
SINCE, LEFT, RESTS = range(3)
"""Floats of a lane: when it got its batch, the work left as if it were alone, when it last became idle."""
HOST_BUSY, LANE_BUSY, DEVICE_BUSY, LINK_BUSY = range(4)
"""Floats of the sums: milliseconds of all units together."""

ARRIVES, DECODES, NODE_COIN, QUEUE_COIN, ENQUEUED, STARTED, DONE = range(7)
SHAPE, NEXT, WHERE = range(3)
"""Of a request: the next one in its queue, and its queue (before it has one, its node)."""


class Rules(NamedTuple):
    nodes: int
    queues: int
    """Of a node."""
    lanes: int
    """Of a device."""
    places: int
    """Lanes of a queue."""
    workers: int
    """Of a node's host stage; 0: none."""
    max_batch: int
    largest: int
    """Of the preferred sizes."""
    delay: float
    at_once: int
    """Requests that a queue may have inside; 0: any number."""
    equal: int
    """1: a batch holds neighbours of one shape."""
    balancer: int
    routing: int
    duplex: int
    shapes: int
    node_size: int
    queue_size: int
    queue_at: int
    """Address of the first queue; nodes begin at 0."""
    idle: int
    """Of the idle lanes within the block of a queue."""
    sums: int
    mixed: int
    """Scratch, requests of each shape in the batch at hand (ints)."""


class World(NamedTuple):
    ints: Ints
    floats: Floats
    times: Floats
    """(requests, 7)."""
    notes: Ints
    """(requests, 3)."""
    table: Floats
    """(shapes + 1, max_batch + 2): mean time by batch from 1, copy in at 0, copy out at the end; last row: 1 if preferred."""
    factors: Floats
    """(shapes, draws): the n-th batch's time over its mean."""
    slow: Floats
    """(lanes + 1, max_batch + 1): slowdown by lanes that compute at once and by the batch of the slowed one, both from 1."""
    rested: Floats
    """(2, points): milliseconds at rest, and how much longer the next batch takes."""
