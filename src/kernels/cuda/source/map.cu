
struct Call {
  const Element* from[INPUTS];
  Element* to[OUTPUTS];
  long long length;
  // Whether packs can be read and written at once, and an unused number, so that what follows is aligned.
  int aligned, unused;
  Real p[PARAMETERS + 1];
};

template <int LENGTH>
DEVICE void elements(const Call& call, long long start) {
  Pack<LENGTH> read[INPUTS], written[OUTPUTS];
#pragma unroll
  for (int k = 0; k < INPUTS; k++) read[k] = *(const Pack<LENGTH>*)(call.from[k] + start);
#pragma unroll
  for (int i = 0; i < LENGTH; i++) {
    Real a[INPUTS], r[OUTPUTS];
    for (int k = 0; k < INPUTS; k++) a[k] = widened(read[k].elements[i]);
    results(a, call.p, r);
    for (int k = 0; k < OUTPUTS; k++) written[k].elements[i] = narrowed(r[k]);
  }
#pragma unroll
  for (int k = 0; k < OUTPUTS; k++) *(Pack<LENGTH>*)(call.to[k] + start) = written[k];
}

extern "C" __global__ void __launch_bounds__(THREADS) map(const Call call) {
  const long long packs = call.aligned ? call.length / PACK : 0;
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, threads = gridDim.x * (long long)THREADS;
  for (long long i = thread; i < packs; i += threads) elements<PACK>(call, i * PACK);
  for (long long i = packs * PACK + thread; i < call.length; i += threads) elements<1>(call, i);
}
