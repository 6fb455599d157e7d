
#define TAPS 64
// Sums that a thread computes, so that it reads a number once for several of them.
#define GROUP 4

// Lines of `read` numbers, each of which becomes a line of `written` sums; a tap is `step` elements from the next one.
struct Call {
  const Element* input;
  Element* output;
  long long lines, step, read, written;
  // Where the first of the taps is, from the first number of a line, when the window is at its first place.
  long long start;
  long long count;
  // Whether the sums are added to those of an earlier launch, and whether indices have 32 bits.
  int more, small;
  Real taps[TAPS];
};

template <class Index>
DEVICE void sums_of(const Call& call) {
  const Index step = call.step, groups = (call.written + GROUP - 1) / GROUP;
  const Index total = Index(call.lines) * groups * step;
  const Index thread = Index(blockIdx.x) * THREADS + threadIdx.x, threads = Index(gridDim.x) * THREADS;
  for (Index i = thread; i < total; i += threads) {
    const Index line = i / step / groups;
    const long long place = i / step % groups * GROUP, inner = i % step;
    const Element* from = call.input + line * call.read * call.step + inner;
    Element* to = call.output + (line * call.written + place) * call.step + inner;
    Real sums[GROUP];
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
      sums[k] = call.more && place + k < call.written ? widened(to[k * call.step]) : Real(0);
    }
    for (int at = 0; at < call.count + GROUP - 1; at++) {
      const long long position = call.start + place + at;
      if (position < 0 || position >= call.read) continue;
      const Real number = widened(from[position * call.step]);
#pragma unroll
      for (int k = 0; k < GROUP; k++) {
        const int tap = at - k;
        if (tap >= 0 && tap < call.count) sums[k] = fma(number, call.taps[tap], sums[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
      if (place + k < call.written) to[k * call.step] = narrowed(sums[k]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) window(const Call call) {
  if (call.small) {
    sums_of<unsigned>(call);
  } else {
    sums_of<unsigned long long>(call);
  }
}
