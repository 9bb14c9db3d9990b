"""A candidate made ready to answer: built, joined with its pre- and post-processing, fed with encoded images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redline import __version__, vision
from redline.data import read_bytes, request_order
from redline.engine.build import Order, build_runner, engine_digest
from redline.plan.candidates import MAX_BATCH
from redline.plan.gpu import engine_profiles, seen_traffic
from redline.predict import GraphPredictor, Predictor
from redline.records import BuildOptions, Candidate
from redline.serve.environment import SERVER_VERSION
from redline.store import digest_of

if TYPE_CHECKING:
    from redline.engine.foundry import Foundry
    from redline.engine.onnxruntime_runner import GraphSession
    from redline.plan.profiles import Profiles
    from redline.prepare import Graphs, Subject
    from redline.records import Dataset, Preprocess, Runner, ShapePolicy, Spec, Traffic
    from redline.resident_lanes import ResidentPredictor, ResidentRunner

GIB = 1 << 30
LOAD_IMAGES = 256
"""Length of the request mix, which is then repeated; its encoded images are held in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """Encoded images in an order whose shapes follow the traffic."""

    encoded: tuple[bytes, ...]
    source_hw: tuple[tuple[int, int], ...]

    def at(self, request: int) -> bytes:
        return self.encoded[request % len(self.encoded)]

    def input_hw(self, preprocess: Preprocess, shapes: ShapePolicy) -> tuple[tuple[int, int], ...]:
        """Network input size of each request of the mix."""
        return tuple(vision.input_size(hw, preprocess, shapes) for hw in self.source_hw)

    def padding_pct(self, preprocess: Preprocess, shapes: ShapePolicy) -> float:
        """Percent of the network's input pixels that are padding when every request of the mix is answered once.

        Every load repeats the mix, so this is what its pixels were; the expectation from the traffic alone (`Buckets.waste`)
        differs where shares are rounded to whole requests or another image stands in for a size that the images do not have.
        """
        return vision.padding_pct(self.source_hw, preprocess, shapes)


def request_mix(subject: Subject) -> Mix:
    return mix_of(subject.dataset, subject.traffic)


def mix_of(dataset: Dataset, traffic: Traffic) -> Mix:
    images = dataset.images
    order = request_order(dataset, traffic, LOAD_IMAGES, 0)
    once = {index: read_bytes(images[index]) for index in set(order)}
    return Mix(tuple(once[i] for i in order), tuple((images[i].height, images[i].width) for i in order))


def first_of_each(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The first request of every distinct size."""
    return list({size: index for index, size in reversed(list(enumerate(sizes)))}.values())


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """`predict` is thread-safe. `build_seconds`: from nothing to the first answer (torch.compile compiles in it)."""

    candidate: Candidate
    predict: Predictor | GraphPredictor | ResidentPredictor
    runner: Runner | GraphSession | ResidentRunner
    mix: Mix
    input_hw: tuple[tuple[int, int], ...]
    """Network input size of each request of the mix."""
    build_seconds: float

    @property
    def joined(self) -> int:
        """Requests that the load generator joins into one call."""
        return self.candidate.batch

    @property
    def callers(self) -> int:
        """Calls in flight."""
        return self.candidate.concurrency

    @property
    def closed_callers(self) -> int:
        return self.candidate.concurrency

    def target(self, requests: Sequence[int]) -> None:
        self.predict.from_bytes([self.mix.at(request) for request in requests])

    def same_batch(self, request: int) -> tuple[int, int]:
        return self.input_hw[request % len(self.input_hw)]

    def warm_up_requests(self) -> list[list[int]]:
        """One inference for every distinct input size, alone and in a full batch."""
        sizes = sorted({1, self.candidate.batch})
        return [[index] * size for index in first_of_each(self.input_hw) for size in sizes]

    def close(self) -> None:
        self.runner.close()


def open_live(subject: Subject, graphs: Graphs, candidate: Candidate, mix: Mix, foundry: Foundry | None = None) -> Live:
    """Raises TrialError if the candidate cannot be built or does not answer; nothing is open then."""
    started = time.perf_counter()
    detector, preprocess = subject.detector, subject.detector.preprocess
    runner: Runner | GraphSession | ResidentRunner
    predict: Predictor | GraphPredictor | ResidentPredictor
    if candidate.prepost == "kernel":
        from redline.resident_lanes import open_resident

        order, sizes = order_of(subject, graphs, candidate, foundry), set(mix.input_hw(preprocess, candidate.shapes))
        runner, predict = open_resident(detector, graphs.of(candidate), candidate, order, sizes)
    elif candidate.prepost == "graph" and graphs.end_to_end is not None:
        from redline.engine.onnxruntime_runner import GraphSession

        session = GraphSession(graphs.end_to_end.path, threads=candidate.threads, concurrent=candidate.concurrency > 1)
        runner, predict = session, GraphPredictor(session)
    else:
        runner = build_runner(detector, graphs.of(candidate), candidate, order_of(subject, graphs, candidate, foundry))
        predict = Predictor(runner, preprocess, detector.head, detector.postprocess, candidate.shapes)
    try:
        predict.from_bytes([mix.at(0)])
    except BaseException:
        runner.close()
        raise
    return Live(
        candidate=candidate,
        predict=predict,
        runner=runner,
        mix=mix,
        input_hw=mix.input_hw(preprocess, candidate.shapes),
        build_seconds=time.perf_counter() - started,
    )


def identity(subject: Subject, graphs: Graphs, candidate: Candidate, foundry: Foundry | None = None) -> str:
    """Digest of the compiled network: of the end-to-end graph where pre- and post-processing are inside."""
    order = order_of(subject, graphs, candidate, foundry)
    digest = engine_digest(subject.detector, graphs.of(candidate), candidate, order)
    return digest if candidate.serving is None else digest_of([digest, SERVER_VERSION, __version__])


def order_of(subject: Subject, graphs: Graphs, candidate: Candidate, foundry: Foundry | None) -> Order | None:
    """What a TensorRT candidate is built from and with; None for every other runner, and where there is no TensorRT."""
    if candidate.runner != "tensorrt" or foundry is None:
        return None
    options = engine_options(subject, graphs, candidate, foundry)
    return Order(foundry, options, rebuild_command(subject.spec, candidate))


def rebuild_command(spec: Spec, candidate: Candidate) -> str:
    """What builds the candidate's engine into the store."""
    words = ["redline build", spec.path, "--precision", candidate.precision, "--profiles", str(candidate.profiles)]
    words += ["--minimal"] if (candidate.shapes, candidate.profiles) == ("minimal", "exact") else []
    words += ["--batched"] if candidate.batch > 1 else []
    words += [word for node in candidate.wide for word in ("--wide", node)]
    return " ".join(words)


def candidate_profiles(subject: Subject, graphs: Graphs, candidate: Candidate) -> Profiles:
    """Of a TensorRT candidate's engine, and what padding they let expect. Raises BadInput if none can be made."""
    images = [(image.height, image.width) for image in subject.dataset.images]
    fixed = graphs.network is not None and isinstance(graphs.network.input.shape[0], int)
    traffic, most = seen_traffic(subject.traffic, images), 1 if fixed else MAX_BATCH
    return engine_profiles(candidate, traffic, subject.detector.preprocess, most)


def engine_options(subject: Subject, graphs: Graphs, candidate: Candidate, foundry: Foundry) -> BuildOptions:
    """Every knob of the candidate's build. Raises BadInput if no profiles can be made for it."""
    from redline.engine.foundry import convolution_sources

    wanted = subject.spec.target.tensorrt
    sources = convolution_sources(foundry.library) if wanted.tactic_sources is None else wanted.tactic_sources
    return BuildOptions(
        precision=candidate.precision,
        profiles=candidate_profiles(subject, graphs, candidate).profiles,
        optimization_level=wanted.optimization_level,
        workspace_bytes=int(wanted.workspace_gib * GIB),
        tactic_sources=sources,
        version_compatible=wanted.version_compatible,
        hardware=wanted.hardware,
        timing_cache=wanted.timing_cache,
    )
