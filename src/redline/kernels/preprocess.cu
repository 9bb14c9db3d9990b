// Resize, channel order, normalisation, padding, cast and layout of a batch of images of different sizes, in one pass.
//
// A warp makes a band of ROWS rows by 32 * PIXELS columns, all three planes; a thread PIXELS neighbours, stored as one vector.
// Pixels of 3 bytes lie at any address: they are read as aligned 32-bit words, of which only those with a needed byte are
// touched, and funnel-shifted into place; all words of a band are asked for before the first is used.
// Defined by who compiles: SAMPLING (one of those below), HALF (output float16 or float32), BGR, PIXELS (1, 2, 4), ROWS, WARPS.
// The arithmetic is that of redline.kernels.preprocess, operation by operation; no product is fused with a sum.

#define NEAREST 0
#define LINEAR_UINT8 1
#define LINEAR_FLOAT 2
#define ANTIALIAS_UINT8 3
#define ANTIALIAS_FLOAT 4

#ifndef TO_HALF  // cuda_fp16.h is nothing that NVRTC finds by itself
#define TO_HALF(bits, value) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value))
#endif

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

// Three words as read, and how far the pixel's first byte is from the first word's.
struct Words {
    Word word[3];
    int shift;
};

__device__ __forceinline__ Words read_pair(Long address, int bytes, bool wanted) {
    Words read;
    int start = (int)(address & 3);
    const Word *words = (const Word *)(address - start);
    read.shift = 8 * start;
    read.word[0] = wanted ? __ldg(words) : 0;
    read.word[1] = wanted && start + bytes > 4 ? __ldg(words + 1) : 0;
    read.word[2] = wanted && start + bytes > 8 ? __ldg(words + 2) : 0;
    return read;
}

__device__ __forceinline__ Pair unpacked(const Words &read) {
    return {__funnelshift_r(read.word[0], read.word[1], read.shift), __funnelshift_r(read.word[1], read.word[2], read.shift)};
}

// Channel of the first and of the second pixel, 0 red, 1 green, 2 blue.
__device__ __forceinline__ int first(Pair pair, int channel) { return (pair.low >> (8 * channel)) & 255; }
__device__ __forceinline__ int second(Pair pair, int channel) {
    return channel == 0 ? pair.low >> 24 : (pair.high >> (8 * channel - 8)) & 255;
}

// A position between two source pixels; at the left and right edges the pair stays inside the row.
struct Position {
    int index;
    float weight;
};

__device__ __forceinline__ Position position(int index, double step) {
    double at = __dadd_rn(__dmul_rn(index + 0.5, step), -0.5);
#if SAMPLING == LINEAR_UINT8
    float single = (float)at;
    float whole = floorf(single);
    return {(int)whole, single - whole};
#else
    double whole = floor(at);
    return {(int)whole, (float)(at - whole)};
#endif
}

__device__ __forceinline__ Position inside_row(Position at, int size) {
    if (at.index < 0) return {0, 0.0f};
    if (at.index >= size - 1) return {max(size - 2, 0), size > 1 ? 1.0f : 0.0f};
    return at;
}

struct Level {
    float channel[3];
};

#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
__device__ __forceinline__ Level blend(Pair upper, Pair lower, float below, float beside) {
    Level level;
#if SAMPLING == LINEAR_UINT8
    int a0 = __float2int_rn((1.0f - beside) * 2048.0f), a1 = __float2int_rn(beside * 2048.0f);
    int b0 = __float2int_rn((1.0f - below) * 2048.0f), b1 = __float2int_rn(below * 2048.0f);
#else
    float before = 1.0f - beside, above = 1.0f - below;
#endif
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#if SAMPLING == LINEAR_UINT8
        int row0 = first(upper, c) * a0 + second(upper, c) * a1, row1 = first(lower, c) * a0 + second(lower, c) * a1;
        level.channel[c] = (float)((((b0 * (row0 >> 4)) >> 16) + ((b1 * (row1 >> 4)) >> 16) + 2) >> 2);
#else
        float row0 = __fadd_rn(__fmul_rn((float)first(upper, c), before), __fmul_rn((float)second(upper, c), beside));
        float row1 = __fadd_rn(__fmul_rn((float)first(lower, c), before), __fmul_rn((float)second(lower, c), beside));
        level.channel[c] = __fadd_rn(__fmul_rn(row0, above), __fmul_rn(row1, below));
#endif
    }
    return level;
}
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
__device__ __forceinline__ Level antialiased(const Source &source, const Window &down, const Window &across) {
    Sum total[3] = {0, 0, 0};
    for (int tap_y = 0; tap_y < down.count; ++tap_y) {
        Long address = source.pixels + (down.start + tap_y) * source.row_bytes + 3LL * across.start;
        Sum row[3] = {0, 0, 0};
        for (int tap_x = 0; tap_x < across.count; ++tap_x) {
            Pair pair = unpacked(read_pair(address + 3 * tap_x, 3, true));
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

__device__ __forceinline__ void store(Element *out, Long plane, const Level (&level)[PIXELS], const bool (&covered)[PIXELS],
                                      const Constants &constants) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        Vector vector;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            float value = __fsub_rn(__fmul_rn(level[p].channel[BGR ? 2 - c : c], constants.gain[c]), constants.bias[c]);
            vector.element[p] = cast(covered[p] ? value : constants.level[c]);
        }
        *(Vector *)(out + c * plane) = vector;
    }
}

// out: (N, 3, height, width), of which gridDim.z images are written; width is a multiple of PIXELS.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    preprocess(const Source *__restrict__ table, Element *__restrict__ out, int height, int width, Constants constants) {
    const Source source = table[blockIdx.z];
    int column = (blockIdx.x * 32 + threadIdx.x) * PIXELS, row = (blockIdx.y * WARPS + threadIdx.y) * ROWS;
    if (column >= width) return;
    Long plane = (Long)height * width;
    out += blockIdx.z * 3 * plane + (Long)row * width + column;
    int source_height = (int)source.height, source_width = (int)source.width;
    int in_x = column - (int)source.left, in_y = row - (int)source.top;
    bool across[PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) across[p] = in_x + p >= 0 && in_x + p < (int)source.resized_width;
#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
    Position right[PIXELS], down[ROWS];
    Words upper[ROWS][PIXELS], lower[ROWS][PIXELS];
#pragma unroll
    for (int p = 0; p < PIXELS; ++p) right[p] = inside_row(position(in_x + p, source.step_x), source_width);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        down[r] = position(in_y + r, source.step_y);
        bool covered = in_y + r >= 0 && in_y + r < (int)source.resized_height;
        Long top = min(max(down[r].index, 0), source_height - 1) * source.row_bytes;
        Long bottom = min(max(down[r].index + 1, 0), source_height - 1) * source.row_bytes;
#pragma unroll
        for (int p = 0; p < PIXELS; ++p) {
            Long address = source.pixels + 3LL * right[p].index;
            int bytes = right[p].weight != 0.0f ? 6 : 3;
            upper[r][p] = read_pair(address + top, bytes, covered && across[p]);
            lower[r][p] = read_pair(address + bottom, bytes, covered && across[p] && down[r].weight != 0.0f);
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
            covered[p] = across[p] && in_y + r >= 0 && in_y + r < (int)source.resized_height;
#if SAMPLING == LINEAR_UINT8 || SAMPLING == LINEAR_FLOAT
            level[p] = blend(unpacked(upper[r][p]), unpacked(lower[r][p]), down[r].weight, right[p].weight);
#elif SAMPLING == NEAREST
            if (covered[p]) {
                Long y = (2LL * (in_y + r) + 1) * source_height / (2 * source.resized_height);
                Long x = (2LL * (in_x + p) + 1) * source_width / (2 * source.resized_width);
                Pair pair = unpacked(read_pair(source.pixels + y * source.row_bytes + 3 * x, 3, true));
                level[p] = {(float)first(pair, 0), (float)first(pair, 1), (float)first(pair, 2)};
            }
#else
            if (covered[p])
                level[p] = antialiased(source, window(in_y + r, source.step_y, source_height),
                                       window(in_x + p, source.step_x, source_width));
#endif
        }
        store(out + (Long)r * width, plane, level, covered, constants);
    }
}
