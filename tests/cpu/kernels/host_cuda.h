// Enough of CUDA C++ for a C++ compiler to run preprocess.cu on the host, one thread after another.
#include <algorithm>
#include <cmath>
#include <cstring>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __restrict__
using std::max;
using std::min;
struct Three { int x, y, z; };
static Three blockIdx, threadIdx;
template <class T> T __ldg(const T *address) { return *address; }
static unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((unsigned long long)high << 32) | low) >> (shift & 31));
}
static unsigned __byte_perm(unsigned low, unsigned high, unsigned chosen) {
    unsigned long long both = ((unsigned long long)high << 32) | low;
    unsigned found = 0;
    for (int byte = 0; byte < 4; ++byte) found |= (unsigned)((both >> (8 * ((chosen >> (4 * byte)) & 7))) & 255) << (8 * byte);
    return found;
}
static unsigned __dp2a_lo(unsigned weights, unsigned bytes, unsigned sum) {
    return sum + (weights & 65535) * (bytes & 255) + (weights >> 16) * ((bytes >> 8) & 255);
}
static unsigned __dp2a_hi(unsigned weights, unsigned bytes, unsigned sum) { return __dp2a_lo(weights, bytes >> 16, sum); }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static double __dadd_rn(double a, double b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static int __float2int_rn(float a) { return (int)std::nearbyint(a); }
#define TO_HALF(bits, value) do { _Float16 half = (_Float16)(value); std::memcpy(&bits, &half, 2); } while (0)
