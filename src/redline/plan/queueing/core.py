"""The event core: arrivals, host stage, Triton's dynamic batcher, copies and devices, one event after the other.

All compiled functions are in this file: numba's cache does not look at the files of those that a function calls.

The batcher is that of Triton 2.51 (triton-inference-server/core, r24.10: dynamic_batch_scheduler.cc, rate_limiter.cc and
instance_queue.cc), its locks taken for instantaneous: requests go from the queue into an open payload, of which at most two an
instance wait; it takes more until it is full, executes, or meets another shape. A batcher that waits for others is woken by a
request only when as many as its next preferred size wait: with a delay some may be left out of a payload that had room. Left
out here: its look at the queue every half second, and timeouts.
"""

from __future__ import annotations

import heapq

import numpy as np

from redline.plan.queueing import state as at
from redline.plan.queueing.jit import compiled
from redline.plan.queueing.state import Floats, Heap, Rules, World

TINY = 1e-9


@compiled
def push(heap: Heap, w: World, rules: Rules, when: float, kind: int, what: int, version: int) -> None:
    w.ints[rules.sums + at.EVENTS] += 1
    heapq.heappush(heap, (when, w.ints[rules.sums + at.EVENTS], kind, what, version))


@compiled
def choose(w: World, policy: int, base: int, size: int, count: int, coin: float, turn: int) -> int:
    """Address of who of `count` units from `base` takes a request; one that is down only if all are."""
    able = 0
    for one in range(count):
        able += w.ints[base + one * size + at.UP]
    if policy == at.ROUND_ROBIN:
        for _ in range(count):
            w.ints[turn] = (w.ints[turn] + 1) % count
            if able == 0 or w.ints[base + w.ints[turn] * size + at.UP] > 0:
                break
        return base + int(w.ints[turn]) * size
    first = int(coin * count)
    if policy == at.SHORTEST:
        best = -1
        for step in range(count):
            unit = base + (first + step) % count * size
            if (able == 0 or w.ints[unit + at.UP] > 0) and (best < 0 or w.ints[unit + at.INSIDE] < w.ints[best + at.INSIDE]):
                best = unit
        return best
    second = (first + 1 + int((coin * count - first) * (count - 1))) % count
    while able > 0 and w.ints[base + first * size + at.UP] == 0:
        first = (first + 1) % count
    one, other = base + first * size, base + second * size
    if policy == at.RANDOM or w.ints[other + at.UP] == 0:
        return one
    return other if w.ints[other + at.INSIDE] < w.ints[one + at.INSIDE] else one


@compiled
def arrives(heap: Heap, w: World, rules: Rules, request: int, now: float) -> None:
    node = 0
    if rules.nodes > 1:
        coin, turn = w.times[request, at.NODE_COIN], rules.sums + at.TURN
        node = choose(w, rules.balancer, 0, rules.node_size, rules.nodes, coin, turn)
    w.ints[node + at.INSIDE] += 1
    w.notes[request, at.WHERE] = node
    if rules.workers == 0:
        enqueue(heap, w, rules, request, now)
        return
    free = node
    for worker in range(node + 1, node + rules.workers):
        if w.floats[worker] < w.floats[free]:
            free = worker
    # First come first served: who comes is known, so his worker and his end are too.
    done = max(now, w.floats[free]) + w.times[request, at.DECODES]
    w.floats[free] = done
    w.floats[rules.sums + at.HOST_BUSY] += w.times[request, at.DECODES]
    push(heap, w, rules, done, at.DECODED, request, 0)


@compiled
def enqueue(heap: Heap, w: World, rules: Rules, request: int, now: float) -> None:
    """The request reaches the batcher's queue, or is refused."""
    ints, node = w.ints, w.notes[request, at.WHERE]
    q = rules.queue_at + node // rules.node_size * rules.queues * rules.queue_size
    if rules.queues > 1:
        coin = w.times[request, at.QUEUE_COIN]
        q = choose(w, rules.routing, q, rules.queue_size, rules.queues, coin, node + at.TURN)
    if rules.at_once > 0 and ints[q + at.INSIDE] >= rules.at_once:
        w.times[request, at.DONE] = at.REFUSED
        ints[node + at.INSIDE] -= 1
        return
    w.notes[request, at.WHERE] = q
    w.times[request, at.ENQUEUED] = now
    if ints[q + at.WAITING] == 0:
        ints[q + at.HEAD] = request
    if ints[q + at.TAIL] >= 0:
        w.notes[ints[q + at.TAIL], at.NEXT] = request
    ints[q + at.TAIL] = request
    ints[q + at.WAITING] += 1
    ints[q + at.INSIDE] += 1
    grown = rules.equal == 1 or ints[q + at.WAITING] >= ints[q + at.WANTED]
    woken = grown or ints[q + at.FULL] == 1 or ints[q + at.OPEN] == at.STALE
    if woken and ints[q + at.PAYLOADS] < 2 * rules.places:
        batcher(heap, w, rules, q, now)


@compiled
def takes(w: World, rules: Rules, q: int) -> tuple[int, bool, bool]:
    """How many more requests the open payload could take; whether the next one must not join; whether by its shape."""
    waiting = w.ints[q + at.WAITING]
    most = min(waiting, rules.max_batch - w.ints[q + at.HAVE])
    if rules.equal == 0 or most == 0:
        return most, waiting > most, False
    request = w.ints[q + at.HEAD]
    shape = w.notes[request, at.SHAPE]
    if w.ints[q + at.HAVE] > 0:
        shape = w.notes[w.ints[q + at.RING + 3 * w.ints[q + at.OPEN] + at.PAYLOAD_FIRST], at.SHAPE]
    for taken in range(most):
        if w.notes[request, at.SHAPE] != shape:
            return taken, True, True
        request = w.notes[request, at.NEXT]
    return most, waiting > most, False


@compiled
def batcher(heap: Heap, w: World, rules: Rules, q: int, now: float) -> None:
    """What the batcher's thread does from when it is woken until it waits again (GetDynamicBatch and the loop around it)."""
    ints, preferred = w.ints, w.table[rules.shapes]
    while True:
        ints[q + at.VERSION] += 1
        if ints[q + at.FULL] == 1 or ints[q + at.OPEN] == at.STALE:
            ints[q + at.OPEN], ints[q + at.HAVE], ints[q + at.FULL], ints[q + at.WANTED] = at.NONE, 0, 0, 0
        if ints[q + at.WAITING] == 0 or ints[q + at.PAYLOADS] >= 2 * rules.places:
            return
        take, ends, cut = takes(w, rules, q)
        have, best = ints[q + at.HAVE], 0
        for size in range(have + 1, have + take + 1):
            best = size - have if preferred[size] > 0 else best
        ripe = w.times[ints[q + at.HEAD], at.ENQUEUED] + rules.delay
        late = rules.delay > 0 and now >= ripe - TINY
        if cut and ints[q + at.OPEN] >= 0:
            ints[q + at.RING + 3 * ints[q + at.OPEN] + at.PAYLOAD_CUT] = 1
        if best > 0 and not late:
            take = best
            ints[q + at.FULL] = 1 if rules.delay == 0 else 0
        elif take == 0:
            if cut:
                return  # the next is of another shape: it waits until the payload executes
            ints[q + at.FULL] = 1
            continue
        elif ends or have + take >= rules.largest:
            ints[q + at.FULL] = 1
        elif rules.delay > 0 and not late:
            wanted = have + take + 1  # below the largest preferred size, so there is one above
            while preferred[wanted] == 0:
                wanted += 1
            ints[q + at.WANTED] = wanted - have
            if have == 0 or preferred[have] > 0:
                push(heap, w, rules, ripe, at.TIMER, q, ints[q + at.VERSION])
                return
        move(w, q, take, 1 if cut else 0, 2 * rules.places)
        dispatch(heap, w, rules, q, now)


@compiled
def move(w: World, q: int, take: int, cut: int, slots: int) -> None:
    """The next `take` requests join the open payload, which is queued for an instance if it is new."""
    ints = w.ints
    if ints[q + at.OPEN] < 0:
        ints[q + at.OPEN] = (ints[q + at.FRONT] + ints[q + at.PAYLOADS]) % slots
        payload = q + at.RING + 3 * ints[q + at.OPEN]
        ints[payload + at.PAYLOAD_FIRST], ints[payload + at.PAYLOAD_COUNT] = ints[q + at.HEAD], 0
        ints[payload + at.PAYLOAD_CUT] = cut
        ints[q + at.PAYLOADS] += 1
    ints[q + at.RING + 3 * ints[q + at.OPEN] + at.PAYLOAD_COUNT] += take
    for _ in range(take):
        ints[q + at.HEAD] = w.notes[ints[q + at.HEAD], at.NEXT]
    ints[q + at.WAITING] -= take
    ints[q + at.HAVE] += take


@compiled
def dequeue(w: World, rules: Rules, q: int, now: float) -> tuple[int, int]:
    """First request and size of what an instance takes: the first payload, and with a delay the overdue ones behind it."""
    ints, slots = w.ints, 2 * rules.places
    payload = q + at.RING + 3 * ints[q + at.FRONT]
    first, count, cut = ints[payload], ints[payload + at.PAYLOAD_COUNT], ints[payload + at.PAYLOAD_CUT]
    if ints[q + at.OPEN] == ints[q + at.FRONT]:
        ints[q + at.OPEN] = at.STALE
    ints[q + at.FRONT] = (ints[q + at.FRONT] + 1) % slots
    ints[q + at.PAYLOADS] -= 1
    while rules.delay > 0 and rules.max_batch > 1 and cut == 0 and ints[q + at.PAYLOADS] > 0:
        payload = q + at.RING + 3 * ints[q + at.FRONT]
        behind, more = ints[payload], ints[payload + at.PAYLOAD_COUNT]
        if ints[payload + at.PAYLOAD_CUT] == 1 or now - w.times[behind, at.ENQUEUED] <= rules.delay:
            break
        if ints[q + at.OPEN] == ints[q + at.FRONT]:
            ints[q + at.OPEN] = at.STALE  # it was marked as executing, whether or not it fits
        other = rules.equal == 1 and w.notes[behind, at.SHAPE] != w.notes[first, at.SHAPE]
        if count + more > rules.max_batch or other:
            break
        count += more
        ints[q + at.FRONT] = (ints[q + at.FRONT] + 1) % slots
        ints[q + at.PAYLOADS] -= 1
    return first, count


@compiled
def dispatch(heap: Heap, w: World, rules: Rules, q: int, now: float) -> None:
    """Idle instances, the longest idle first, take the payloads that wait."""
    ints = w.ints
    while ints[q + at.PAYLOADS] > 0 and ints[q + at.IDLE] > 0:
        lane = ints[q + rules.idle + ints[q + at.IDLE_AT]]
        ints[q + at.IDLE_AT] = (ints[q + at.IDLE_AT] + 1) % rules.places
        ints[q + at.IDLE] -= 1
        first, count = dequeue(w, rules, q, now)
        begin(heap, w, rules, lane, first, count, now)


@compiled
def begin(heap: Heap, w: World, rules: Rules, lane: int, first: int, count: int, now: float) -> None:
    ints, request = w.ints, first
    ints[lane + at.FIRST], ints[lane + at.COUNT], w.floats[lane + at.SINCE] = first, count, now
    for shape in range(rules.shapes):
        ints[rules.mixed + shape] = 0
    for _ in range(count):
        w.times[request, at.STARTED] = now
        ints[rules.mixed + w.notes[request, at.SHAPE]] += 1
        request = w.notes[request, at.NEXT]
    work, copied = 0.0, 0.0
    for shape in range(rules.shapes):
        members = ints[rules.mixed + shape]
        if members > 0:
            work += w.table[shape, members]
            copied += members * w.table[shape, 0]
    draw = ints[rules.sums + at.BATCHES] % w.factors.shape[1]
    more = np.interp(now - w.floats[lane + at.RESTS], w.rested[0], w.rested[1]) if w.rested.size else 0.0
    w.floats[lane + at.LEFT] = work * w.factors[w.notes[first, at.SHAPE], draw] + more
    ints[rules.sums + at.BATCHES] += 1
    ints[rules.sums + at.SERVED] += count
    if copied > 0:
        transfer(heap, w, rules, lane, copied, at.COPIED_IN, now)
    else:
        turns(heap, w, rules, lane, at.COMPUTING, now)


@compiled
def transfer(heap: Heap, w: World, rules: Rules, lane: int, copied: float, kind: int, now: float) -> None:
    """A copy waits for its link, first come first served."""
    w.ints[lane + at.STATE] = at.MOVING
    w.ints[lane + at.VERSION] += 1
    way = w.ints[w.ints[lane + at.DEVICE] + at.LINK] + (1 if kind == at.COPIED_OUT and rules.duplex == 1 else 0)
    w.floats[way] = max(now, w.floats[way]) + copied
    w.floats[rules.sums + at.LINK_BUSY] += copied
    push(heap, w, rules, w.floats[way], kind, lane, w.ints[lane + at.VERSION])


@compiled
def advance(w: World, rules: Rules, device: int, now: float) -> None:
    """The work done since the last change."""
    running, passed = w.ints[device + at.RUNNING], now - w.floats[device + at.CHANGED]
    w.floats[device + at.CHANGED] = now
    if running == 0:
        return
    w.floats[rules.sums + at.DEVICE_BUSY] += passed
    lanes = w.ints[device + at.OWN_LANES]
    for lane in range(lanes, lanes + rules.lanes * at.LANE_SIZE, at.LANE_SIZE):
        if w.ints[lane + at.STATE] == at.COMPUTING:
            w.floats[lane + at.LEFT] -= passed / w.slow[running, w.ints[lane + at.COUNT]]


@compiled
def soonest(w: World, rules: Rules, device: int) -> tuple[int, float]:
    """The lane that ends next, of those that compute, and how long it takes; -1: none does."""
    found, least, lanes = -1, 0.0, w.ints[device + at.OWN_LANES]
    for lane in range(lanes, lanes + rules.lanes * at.LANE_SIZE, at.LANE_SIZE):
        if w.ints[lane + at.STATE] == at.COMPUTING:
            left = max(w.floats[lane + at.LEFT], 0.0) * w.slow[w.ints[device + at.RUNNING], w.ints[lane + at.COUNT]]
            if found < 0 or left < least:
                found, least = lane, left
    return found, least


@compiled
def expect(heap: Heap, w: World, rules: Rules, device: int, now: float) -> None:
    """The next end of a computation on this device."""
    w.ints[device + at.VERSION] += 1
    lane, left = soonest(w, rules, device)
    if lane >= 0:
        push(heap, w, rules, now + left, at.COMPUTED, device, w.ints[device + at.VERSION])


@compiled
def turns(heap: Heap, w: World, rules: Rules, lane: int, state: int, now: float) -> None:
    """The lane begins to compute or ends, which changes the speed of the others on its device."""
    device = w.ints[lane + at.DEVICE]
    advance(w, rules, device, now)
    w.ints[lane + at.STATE] = state
    w.ints[device + at.RUNNING] += 1 if state == at.COMPUTING else -1
    expect(heap, w, rules, device, now)


@compiled
def computed(heap: Heap, w: World, rules: Rules, lane: int, now: float) -> None:
    turns(heap, w, rules, lane, at.MOVING, now)
    copied, request = 0.0, w.ints[lane + at.FIRST]
    for _ in range(w.ints[lane + at.COUNT]):
        copied += w.table[w.notes[request, at.SHAPE], rules.max_batch + 1]
        request = w.notes[request, at.NEXT]
    if copied > 0:
        transfer(heap, w, rules, lane, copied, at.COPIED_OUT, now)
    else:
        answered(heap, w, rules, lane, now, now)


@compiled
def answered(heap: Heap, w: World, rules: Rules, lane: int, now: float, mark: float) -> None:
    """The batch leaves with `mark` as the time of its answers (or FAILED), and the lane is idle."""
    ints, q = w.ints, w.ints[lane + at.QUEUE]
    request, count = ints[lane + at.FIRST], ints[lane + at.COUNT]
    for _ in range(count):
        w.times[request, at.DONE] = mark
        request = w.notes[request, at.NEXT]
    w.floats[rules.sums + at.LANE_BUSY] += now - w.floats[lane + at.SINCE]
    ints[q + at.INSIDE] -= count
    ints[ints[q + at.NODE] + at.INSIDE] -= count
    ints[lane + at.STATE] = at.AT_REST
    w.floats[lane + at.RESTS] = now
    if ints[lane + at.DOWN] == 0:
        rest(heap, w, rules, lane, now)


@compiled
def rest(heap: Heap, w: World, rules: Rules, lane: int, now: float) -> None:
    ints, q = w.ints, w.ints[lane + at.QUEUE]
    ints[q + rules.idle + (ints[q + at.IDLE_AT] + ints[q + at.IDLE]) % rules.places] = lane
    ints[q + at.IDLE] += 1
    if ints[q + at.PAYLOADS] > 0:
        dispatch(heap, w, rules, q, now)
        batcher(heap, w, rules, q, now)


@compiled
def outage(heap: Heap, w: World, rules: Rules, lane: int, begins: bool, now: float) -> None:
    """The lane goes or comes back; what it was doing is lost."""
    ints, q, change = w.ints, w.ints[lane + at.QUEUE], 1 if begins else -1
    ints[lane + at.DOWN] += change
    if ints[lane + at.DOWN] != (1 if begins else 0):
        return
    ints[q + at.UP] -= change
    ints[ints[q + at.NODE] + at.UP] -= change
    if not begins:
        rest(heap, w, rules, lane, now)
    elif ints[lane + at.STATE] == at.AT_REST:
        kept, idle = 0, q + rules.idle
        for step in range(ints[q + at.IDLE]):
            other = ints[idle + (ints[q + at.IDLE_AT] + step) % rules.places]
            if other != lane:
                ints[idle + (ints[q + at.IDLE_AT] + kept) % rules.places] = other
                kept += 1
        ints[q + at.IDLE] = kept
    else:
        if ints[lane + at.STATE] == at.COMPUTING:
            turns(heap, w, rules, lane, at.MOVING, now)
        ints[lane + at.VERSION] += 1
        answered(heap, w, rules, lane, now, at.FAILED)


@compiled
def run(w: World, rules: Rules, outages: Floats) -> None:
    """All requests to their end. `outages`: (n, 3) of time, address of the lane, 1 (begins) or 0 (ends), ascending."""
    heap = [(np.inf, 0, at.DECODED, 0, 0)]
    coming, failing = 0, 0
    while True:
        arrival = w.times[coming, at.ARRIVES] if coming < len(w.times) else np.inf
        change = outages[failing, 0] if failing < len(outages) else np.inf
        now = min(arrival, change, heap[0][0])
        if now == np.inf:
            return
        if now == change:
            outage(heap, w, rules, int(outages[failing, 1]), outages[failing, 2] == 1, now)
            failing += 1
        elif now == arrival:
            arrives(heap, w, rules, coming, now)
            coming += 1
        else:
            _, _, kind, what, version = heapq.heappop(heap)
            if kind == at.DECODED:
                enqueue(heap, w, rules, what, now)
            elif w.ints[what + at.VERSION] == version:
                if kind == at.TIMER:
                    batcher(heap, w, rules, what, now)
                elif kind == at.COMPUTED:
                    computed(heap, w, rules, soonest(w, rules, what)[0], now)
                elif kind == at.COPIED_IN:
                    turns(heap, w, rules, what, at.COMPUTING, now)
                else:
                    answered(heap, w, rules, what, now, now)
