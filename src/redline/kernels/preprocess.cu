// Resize, channel order, normalisation, padding, cast and layout of a batch of images of different sizes, in one pass.
//
// A warp makes a band of ROWS rows by 32 * PIXELS columns, all three planes; a thread PIXELS neighbours, stored as one vector.
// Pixels of 3 bytes lie at any address: they are read as aligned 32-bit words, of which only those with a needed byte are
// touched, and funnel-shifted into place; all words of a band are asked for before the first is used.
// Defined by who compiles: SAMPLING (one of those below), HALF (output float16 or float32), BGR, PIXELS (1, 2, 4), ROWS, WARPS.
// The arithmetic is that of redline.kernels.preprocess; no product is fused with a sum but where it says so.

#define NEAREST 0
#define LINEAR_UINT8 1
#define LINEAR_FLOAT 2
#define ANTIALIAS_UINT8 3
#define ANTIALIAS_FLOAT 4

#ifndef TO_HALF  // cuda_fp16.h is nothing that NVRTC finds by itself
#define TO_HALF(bits, value) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value))
#endif

typedef unsigned char Byte;
typedef unsigned int Word;
typedef long long Long;

// As redline.kernels.table writes it. Zeros: an input of padding alone.
struct Source {
    Long pixels, height, width, row_bytes, resized_height, resized_width, top, left;
    double step_y, step_x;
};

// By output channel: a pixel becomes pixel * gain - bias, padding is level.
struct Constants {
    float gain[3], bias[3], level[3];
};

// A pixel and, where it is wanted, the one after it: RGBR, GB.
struct Pair {
    Word low, high;
};

// An image: its first aligned word, how many bytes into it the first pixel starts, and the bytes from row to row.
struct Pixels {
    const Byte *words;
    int phase, row_bytes;
};

// Three words as read; the pixel's first byte is this many bits, modulo 32, from the first word's.
struct Words {
    Word word[3];
    int shift;
};

__device__ __forceinline__ Words read_pair(const Pixels &pixels, int offset, int bytes, bool wanted) {
    Words read;
    int end = (offset & 3) + bytes;
    const Word *words = (const Word *)(pixels.words + (Word)(offset & ~3));
    read.shift = offset << 3;
    read.word[0] = wanted ? __ldg(words) : 0;
    read.word[1] = wanted && end > 4 ? __ldg(words + 1) : 0;
    read.word[2] = wanted && end > 8 ? __ldg(words + 2) : 0;
    return read;
}

__device__ __forceinline__ Pair unpacked(const Words &read) {
    return {__funnelshift_r(read.word[0], read.word[1], read.shift), __funnelshift_r(read.word[1], read.word[2], read.shift)};
}

// Channel of the first pixel, 0 red, 1 green, 2 blue.
__device__ __forceinline__ int first(Pair pair, int channel) { return (pair.low >> (8 * channel)) & 255; }

struct Level {
    float channel[3];
};

#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
// A position between two source pixels.
struct Position {
    int index;
    float weight;
};

__device__ __forceinline__ Position position(int index, double step) {
    double at = __dadd_rn(__dmul_rn(index + 0.5, step), -0.5);
#if SAMPLING == LINEAR_UINT8
    float single = (float)at, whole = floorf(single);
    return {(int)whole, single - whole};
#else
    double whole = floor(at);
    return {(int)whole, (float)(at - whole)};
#endif
}

#if SAMPLING == LINEAR_UINT8
typedef Word Weight;
__device__ __forceinline__ Weight scaled(float weight) { return (Weight)__float2int_rn(weight * 2048.0f); }
#else
typedef float Weight;
__device__ __forceinline__ Weight scaled(float weight) { return weight; }
#endif

// Two neighbours on an axis: where they are, in bytes from the image's first word, and their weights.
struct Neighbours {
    int first, second;
    bool two;
    Weight before, after;
};

// Columns: at the edges all weight is the edge pixel's, and the pair stays inside the row if that has two pixels.
__device__ __forceinline__ Neighbours columns(Position at, int size) {
    if (at.index < 0) at = {0, 0.0f};
    if (at.index >= size - 1) at = {max(size - 2, 0), size > 1 ? 1.0f : 0.0f};
    return {3 * at.index, 3 * at.index + 3, at.weight != 0.0f, scaled(1.0f - at.weight), scaled(at.weight)};
}

// Rows: at the edges both are the edge row, with the weights that they have.
__device__ __forceinline__ Neighbours rows(Position at, int size, const Pixels &pixels) {
    int upper = min(max(at.index, 0), size - 1) * pixels.row_bytes, lower = min(max(at.index + 1, 0), size - 1) * pixels.row_bytes;
    return {upper + pixels.phase, lower + pixels.phase, at.weight != 0.0f, scaled(1.0f - at.weight), scaled(at.weight)};
}

#if SAMPLING == LINEAR_UINT8
// OpenCV's fixed point: 11-bit weights across (two products and their sum in one instruction), then 11-bit weights down, each
// product truncated to 2 fractional bits after its row has lost 4.
__device__ __forceinline__ Level blend(Pair upper, Pair lower, const Neighbours &across, const Neighbours &down) {
    Word weights = across.before | across.after << 16;
    Word red_green[2] = {__byte_perm(upper.low, upper.high, 0x4130), __byte_perm(lower.low, lower.high, 0x4130)};
    Word blue[2] = {__byte_perm(upper.low, upper.high, 0x0052), __byte_perm(lower.low, lower.high, 0x0052)};
    Word sum[3] = {2, 2, 2};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        Word row[3] = {__dp2a_lo(weights, red_green[r], 0u), __dp2a_hi(weights, red_green[r], 0u), __dp2a_lo(weights, blue[r], 0u)};
#pragma unroll
        for (int c = 0; c < 3; ++c) sum[c] += __umulhi(row[c] & ~15u, (r ? down.after : down.before) << 12);
    }
    return {(float)(int)(sum[0] >> 2), (float)(int)(sum[1] >> 2), (float)(int)(sum[2] >> 2)};
}
#else
// A byte of a word as a float: it becomes the low bits of 2 ** 23.
__device__ __forceinline__ float level_of_byte(Word word, int byte) {
    return __uint_as_float(__byte_perm(word, 0x4B000000, 0x7540 + byte)) - 8388608.0f;
}

__device__ __forceinline__ Level blend(Pair upper, Pair lower, const Neighbours &across, const Neighbours &down) {
    float weight[4] = {down.before * across.before, down.before * across.after, down.after * across.before,
                       down.after * across.after};
    Level level;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        float sum = level_of_byte(upper.low, c) * weight[0];
        sum = __fmaf_rn(c ? level_of_byte(upper.high, c - 1) : level_of_byte(upper.low, 3), weight[1], sum);
        sum = __fmaf_rn(level_of_byte(lower.low, c), weight[2], sum);
        level.channel[c] = __fmaf_rn(c ? level_of_byte(lower.high, c - 1) : level_of_byte(lower.low, 3), weight[3], sum);
    }
    return level;
}
#endif
#endif

#if SAMPLING == ANTIALIAS_UINT8 || SAMPLING == ANTIALIAS_FLOAT
// Pillow's triangle filter on an axis.
struct Window {
    int start, count;
    double distance, narrow, total;
};

__device__ __forceinline__ double raw_weight(const Window &window, int tap) {
    double weight = 1.0 - fabs(__dmul_rn(window.distance + tap + 0.5, window.narrow));
    return weight > 0.0 ? weight : 0.0;
}

__device__ __forceinline__ Window window(int index, double step, int size) {
    double wide = step > 1.0 ? step : 1.0, centre = (index + 0.5) * step;
    Window found;
    found.start = max((int)(centre - wide + 0.5), 0);
    found.count = min((int)(centre + wide + 0.5), size) - found.start;
    found.distance = found.start - centre;
    found.narrow = 1.0 / wide;
    found.total = 0.0;
    for (int tap = 0; tap < found.count; ++tap) found.total += raw_weight(found, tap);
    return found;
}

#if SAMPLING == ANTIALIAS_UINT8
typedef int Sum;
__device__ __forceinline__ Sum scaled(double weight) { return (int)__dadd_rn(__dmul_rn(weight, 4194304.0), 0.5); }
__device__ __forceinline__ Sum level_of(Sum sum) { return (sum + 2097152) >> 22; }
#else
typedef float Sum;
__device__ __forceinline__ Sum scaled(double weight) { return (float)weight; }
__device__ __forceinline__ Sum level_of(Sum sum) { return sum; }
#endif

// Columns first, then rows, as Pillow does; whole levels after each pass in its fixed point.
__device__ __forceinline__ Level antialiased(const Pixels &pixels, const Window &down, const Window &across) {
    Sum total[3] = {0, 0, 0};
    for (int tap_y = 0; tap_y < down.count; ++tap_y) {
        int offset = pixels.phase + (down.start + tap_y) * pixels.row_bytes + 3 * across.start;
        Sum row[3] = {0, 0, 0};
        for (int tap_x = 0; tap_x < across.count; ++tap_x) {
            Pair pair = unpacked(read_pair(pixels, offset + 3 * tap_x, 3, true));
            Sum weight = scaled(raw_weight(across, tap_x) / across.total);
#pragma unroll
            for (int c = 0; c < 3; ++c) row[c] += first(pair, c) * weight;
        }
        Sum weight = scaled(raw_weight(down, tap_y) / down.total);
#pragma unroll
        for (int c = 0; c < 3; ++c) total[c] += level_of(row[c]) * weight;
    }
    return {(float)level_of(total[0]), (float)level_of(total[1]), (float)level_of(total[2])};
}
#endif

#if HALF
typedef unsigned short Element;
__device__ __forceinline__ Element cast(float value) {
    Element bits;
    TO_HALF(bits, value);
    return bits;
}
#else
typedef float Element;
__device__ __forceinline__ Element cast(float value) { return value; }
#endif

struct __align__(sizeof(Element) * PIXELS) Vector {
    Element element[PIXELS];
};

// The reference rounds the product before it subtracts; where it interpolates in float32 its last bit is not ours anyway.
__device__ __forceinline__ float normalised(float level, float gain, float bias) {
#if SAMPLING == LINEAR_FLOAT
    return __fmaf_rn(level, gain, -bias);
#else
    return __fsub_rn(__fmul_rn(level, gain), bias);
#endif
}

__device__ __forceinline__ void store(Element *out, Long plane, const Level (&level)[PIXELS], const bool (&covered)[PIXELS],
                                      const Constants &constants) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        Vector vector;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            float value = normalised(level[p].channel[BGR ? 2 - c : c], constants.gain[c], constants.bias[c]);
            vector.element[p] = cast(covered[p] ? value : constants.level[c]);
        }
        *(Vector *)(out + c * plane) = vector;
    }
}

__device__ __forceinline__ void pad(Element *out, Long plane, const Constants &constants) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        Vector vector;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) vector.element[p] = cast(constants.level[c]);
        *(Vector *)(out + c * plane) = vector;
    }
}

// out: (N, 3, height, width), of which gridDim.z images are written; width is a multiple of PIXELS.
// 40 warps of a multiprocessor's 64 at once: 48 registers, which cost no spill but where antialiasing needs 80.
extern "C" __global__ void __launch_bounds__(32 * WARPS, SAMPLING >= ANTIALIAS_UINT8 ? 1 : 40 / WARPS)
    preprocess(const Source *__restrict__ table, Element *__restrict__ out, int height, int width, Constants constants) {
    const Source &source = table[blockIdx.z];
    int column = (blockIdx.x * 32 + threadIdx.x) * PIXELS, row = (blockIdx.y * WARPS + threadIdx.y) * ROWS;
    if (column >= width) return;
    Long plane = (Long)height * width;
    out += blockIdx.z * 3 * plane + (Long)row * width + column;
    int resized_height = (int)source.resized_height, resized_width = (int)source.resized_width;
    int in_x = column - (int)source.left, in_y = row - (int)source.top;
    if (in_x + PIXELS <= 0 || in_x >= resized_width || in_y + ROWS <= 0 || in_y >= resized_height) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            if (row + r < height) pad(out + (Long)r * width, plane, constants);
        return;
    }
    int source_height = (int)source.height, source_width = (int)source.width;
    Pixels pixels = {(const Byte *)(source.pixels & ~3LL), (int)(source.pixels & 3), (int)source.row_bytes};
    bool inside[PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) inside[p] = in_x + p >= 0 && in_x + p < resized_width;
#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
    Neighbours across[PIXELS], down[ROWS];
    Words upper[ROWS][PIXELS], lower[ROWS][PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) across[p] = columns(position(in_x + p, source.step_x), source_width);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        down[r] = rows(position(in_y + r, source.step_y), source_height, pixels);
        bool covered = in_y + r >= 0 && in_y + r < resized_height;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            int bytes = across[p].two ? 6 : 3;
            upper[r][p] = read_pair(pixels, down[r].first + across[p].first, bytes, covered && inside[p]);
            lower[r][p] = read_pair(pixels, down[r].second + across[p].first, bytes, covered && inside[p] && down[r].two);
        }
    }
#endif
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (row + r >= height) return;
        bool covered[PIXELS];
        Level level[PIXELS];
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            covered[p] = inside[p] && in_y + r >= 0 && in_y + r < resized_height;
#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
            level[p] = blend(unpacked(upper[r][p]), unpacked(lower[r][p]), across[p], down[r]);
#elif SAMPLING == NEAREST
            if (covered[p]) {
                int y = (int)((2LL * (in_y + r) + 1) * source_height / (2 * resized_height));
                int x = (int)((2LL * (in_x + p) + 1) * source_width / (2 * resized_width));
                Pair pair = unpacked(read_pair(pixels, pixels.phase + y * pixels.row_bytes + 3 * x, 3, true));
                level[p] = {(float)first(pair, 0), (float)first(pair, 1), (float)first(pair, 2)};
            }
#else
            if (covered[p])
                level[p] = antialiased(pixels, window(in_y + r, source.step_y, source_height),
                                       window(in_x + p, source.step_x, source_width));
#endif
        }
        store(out + (Long)r * width, plane, level, covered, constants);
    }
}
