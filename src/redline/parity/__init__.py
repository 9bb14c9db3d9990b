"""Judge a candidate by its reference: tensors, boxes, mAP with a paired interval, determinism, verdict.

Knows nothing of runners, engines or files: it takes what they produced. Measuring and judging are separate functions, so
that old results can be judged by new limits.
"""

from redline.parity.agreement import AGREEMENT_FLOOR, agreement_truths
from redline.parity.answers import differs
from redline.parity.bootstrap import images_to_decide, map_drop, resample_counts, resampled_ap
from redline.parity.boxes import divergence, match_boxes
from redline.parity.compare import GroundTruth, Observed, compare, ground_truth, observe
from redline.parity.evaluation import CategoryMatches, Evaluation, accuracy, evaluate
from redline.parity.harm import score_shift, worst_images
from redline.parity.tensors import TOLERANCE, compare_tensors, determinism
from redline.parity.verdict import judge

__all__ = [
    "AGREEMENT_FLOOR",
    "TOLERANCE",
    "CategoryMatches",
    "Evaluation",
    "GroundTruth",
    "Observed",
    "accuracy",
    "agreement_truths",
    "compare",
    "compare_tensors",
    "determinism",
    "differs",
    "divergence",
    "evaluate",
    "ground_truth",
    "images_to_decide",
    "judge",
    "map_drop",
    "match_boxes",
    "observe",
    "resample_counts",
    "resampled_ap",
    "score_shift",
    "worst_images",
]
