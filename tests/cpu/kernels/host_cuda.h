// Enough of CUDA C++ for a C++ compiler to run preprocess.cu on the host, one thread after another.
#include <algorithm>
#include <cmath>
#include <cstring>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
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
static double __dadd_rn(double a, double b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static int __float2int_rn(float a) { return (int)std::nearbyint(a); }
#define TO_HALF(bits, value) do { _Float16 half = (_Float16)(value); std::memcpy(&bits, &half, 2); } while (0)
