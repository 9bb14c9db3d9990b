"""ONNX operators by what a kernel for them does."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONVOLUTIONS = _names("Conv ConvTranspose")
MATRICES = _names("MatMul Gemm")
PRODUCTS = CONVOLUTIONS | MATRICES
ALIASES = _names("Identity Dropout Reshape Flatten Squeeze Unsqueeze")
"""They give a tensor another shape and move nothing."""
FREE = ALIASES | _names("Constant ConstantOfShape Shape Size Range")
"""A compiler resolves them."""
ELEMENTWISE = _names(
    """Relu Sigmoid Tanh LeakyRelu Elu Selu Softplus Softsign HardSigmoid HardSwish Mish Gelu Celu ThresholdedRelu Swish Erf Exp
    Log Sqrt Abs Neg Reciprocal Floor Ceil Round Sign Sin Cos Not Cast Clip IsNaN IsInf BatchNormalization QuantizeLinear
    DequantizeLinear"""
)
"""Outputs as large as the first input."""
BROADCAST = _names(
    """Add Sub Mul Div Pow Mod Max Min Sum Mean PRelu Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor"""
)
POINTWISE = ELEMENTWISE | BROADCAST
WINDOWS = _names("MaxPool AveragePool LpPool")
PLANES = _names("GlobalAveragePool GlobalMaxPool")
POOLS = WINDOWS | PLANES
NORMS = _names(
    """Softmax LogSoftmax Hardmax InstanceNormalization LayerNormalization GroupNormalization RMSNormalization LpNormalization
    LRN CumSum"""
)
SUMS = _names(
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp ArgMax ArgMin"
)
REDUCTIONS = NORMS | SUMS | _names("TopK")
SCATTERS = _names("ScatterND ScatterElements Trilu")
MOVES = SCATTERS | _names(
    "Transpose Slice Split Resize Upsample Pad Expand Tile Gather GatherElements GatherND DepthToSpace SpaceToDepth"
)
BODIES = _names("If Loop Scan")
"""Operators with graphs inside."""
