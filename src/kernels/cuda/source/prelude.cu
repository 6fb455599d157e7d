// What all kernels share: numbers, elements, sums.

#define DEVICE __device__ __forceinline__
#define THREADS 256
#define WARP 32
// Of a kernel with many numbers at a time. Left to itself the compiler would rather spill one of them than take some
// registers more; with so many blocks at once it has enough registers, and no stack.
#define BOUNDS_OF_MANY __launch_bounds__(THREADS, sizeof(Real) == sizeof(double) ? 2 : 3)

#if DOUBLE
typedef double Real;
#else
typedef float Real;
#endif
#define NAN_REAL Real(__int_as_float(0x7fffffff))
#if DOUBLE
#define SMALLEST_REAL 2.2250738585072014e-308
#else
#define SMALLEST_REAL 1.17549435e-38f
#endif
#define INFINITE_REAL Real(__int_as_float(0x7f800000))

// Elements of half precision are their bits, so that no header is needed.
#if DOUBLE || FLOAT
typedef Real Element;
DEVICE Real widened(Element element) { return element; }
DEVICE Element narrowed(Real number) { return number; }
#elif BFLOAT16
typedef unsigned short Element;
DEVICE float widened(Element bits) { return __int_as_float(int(bits) << 16); }
DEVICE Element narrowed(float number) {
  const unsigned bits = __float_as_int(number);
  // To the nearest, of two the even one; NaN stays NaN.
  return number != number ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#elif HALF
typedef unsigned short Element;
#if !EMULATED
DEVICE float half_to_float(Element bits) {
  float number;
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
}
DEVICE Element float_to_half(float number) {
  Element bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  return bits;
}
#endif
DEVICE float widened(Element bits) { return half_to_float(bits); }
DEVICE Element narrowed(float number) { return float_to_half(number); }
#endif

#define PACK (16 / int(sizeof(Element)))

// Elements that are read or written at once.
template <int LENGTH>
struct __align__(LENGTH * sizeof(Element)) Pack {
  Element elements[LENGTH];
};

struct Add {
  template <class T> DEVICE T operator()(T a, T b) const { return a + b; }
};
// The larger one; NaN is left out.
struct Larger {
  template <class T> DEVICE T operator()(T a, T b) const { return fmax(a, b); }
};

// What `fold` makes of the numbers of all threads of a warp, in a fixed order, for its first thread.
template <class T, class Fold>
DEVICE T of_warp(T number, Fold fold) {
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    number = fold(number, __shfl_down_sync(0xffffffffu, number, distance));
  }
  return number;
}

// The same for a block, for all of its threads.
template <class T, class Fold>
DEVICE T of_block(T number, Fold fold, T neutral) {
  __shared__ T warps[WARP];
  __shared__ T all;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, count = blockDim.x / WARP;
  number = of_warp(number, fold);
  if (lane == 0) warps[warp] = number;
  __syncthreads();
  if (warp == 0) {
    number = of_warp(lane < count ? warps[lane] : neutral, fold);
    if (lane == 0) all = number;
  }
  __syncthreads();
  // The next call writes this after a barrier that all threads come to when they have read it.
  return all;
}

// What the sum of the losses is multiplied by in a mean over what has been counted, of which there are so many parts: a
// sum of weights, and how many there are. NaN where nothing counts: without this the terms that smoothing spreads over the
// other classes would make the mean infinite.
DEVICE double of_mean(const double* counts, int parts) {
  double weight = 0, number = 0;
  for (int i = threadIdx.x; i < parts; i += THREADS) {
    weight += counts[2 * i];
    number += counts[2 * i + 1];
  }
  weight = of_block(weight, Add(), 0.0);
  number = of_block(number, Add(), 0.0);
  return number == 0 ? double(NAN_REAL) : 1 / weight;
}

// The class of a target, of so many classes: −1 where it is ignored, −2 where it is none.
DEVICE int class_of(long long target, int ignores, long long ignored, int classes) {
  if (ignores && target == ignored) return -1;
  return target < 0 || target >= classes ? -2 : int(target);
}

// The number of an element of the kind of the kernel or of an integer kind.
template <class T> DEVICE Real number_of(T element) { return Real(element); }
#if HALF || BFLOAT16
DEVICE Real number_of(Element element) { return widened(element); }
#endif

// What the place of an element is made of, given its place i in another tensor: i / inner % size * stride.
struct Step {
  long long inner, size, stride;
};

// In place of a number of steps: that each element is at the place i itself, or that there are none.
#define ALIKE (-1)
#define NO_FACTORS (-2)

template <int STEPS>
DEVICE long long place(const Step* steps, bool small, long long i) {
  long long place = 0;
  for (int k = 0; k < STEPS; k++) {
    const Step step = steps[k];
    // Divisions of 64 bits are slow.
    place += step.stride * (small ? unsigned(i) / unsigned(step.inner) % unsigned(step.size) : i / step.inner % step.size);
  }
  return place;
}

// At most 16 bytes can be read at once.
#define PACK_BYTES(bytes) ((bytes) < 16 ? (bytes) : 16)
template <class T, int LENGTH>
struct __align__(PACK_BYTES(LENGTH * sizeof(T))) PackOf {
  T elements[LENGTH];
};

// The numbers of the elements from `start` on; ones where there are none.
template <int STEPS, int LENGTH, class T>
DEVICE void read(const T* from, const Step* steps, bool small, long long start, Real* numbers) {
  if (STEPS == ALIKE) {
    const PackOf<T, LENGTH> pack = *(const PackOf<T, LENGTH>*)(from + start);
    for (int i = 0; i < LENGTH; i++) numbers[i] = number_of(pack.elements[i]);
    return;
  }
  for (int i = 0; i < LENGTH; i++) {
    numbers[i] = STEPS == NO_FACTORS ? Real(1) : number_of(from[place<STEPS>(steps, small, start + i)]);
  }
}
