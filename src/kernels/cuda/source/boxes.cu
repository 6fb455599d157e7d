
#define CORNERS 4

struct Call {
  const Element* boxes[2];
  Element* gradients[GRADIENTS + 1];
  Element* losses;
  // What the derivatives are multiplied by, besides `factor`: one number, or one for `each` pair; null for none.
  const Factor* factors;
  double* sums;
  long long length;
  int each;
  int aligned;
  Real factor;
  Real p[PARAMETERS + 1];
};

// The loss of a pair, whose derivatives are stored. LENGTH elements are read and written at once.
template <int LENGTH>
DEVICE Real pair(const Call& call, long long i) {
  typedef PackOf<Element, LENGTH> Part;
  Real a[2 * CORNERS], g[CORNERS * GRADIENTS + 1];
  for (int which = 0; which < 2; which++) {
    for (int start = 0; start < CORNERS; start += LENGTH) {
      const Part part = *(const Part*)(call.boxes[which] + i * CORNERS + start);
      for (int k = 0; k < LENGTH; k++) a[which * CORNERS + start + k] = widened(part.elements[k]);
    }
  }
  const Real loss = evaluate(a, call.p, g);
  if (LOSSES) call.losses[i] = narrowed(loss);
  if (!GRADIENTS) return loss;
  Real factor = call.factor;
  if (call.factors) factor *= number_of(call.factors[call.each ? i : 0]);
  for (int which = 0; which < GRADIENTS; which++) {
    for (int start = 0; start < CORNERS; start += LENGTH) {
      Part part;
      for (int k = 0; k < LENGTH; k++) part.elements[k] = narrowed(g[which * CORNERS + start + k] * factor);
      *(Part*)(call.gradients[which] + i * CORNERS + start) = part;
    }
  }
  return loss;
}

extern "C" __global__ void __launch_bounds__(THREADS) boxes(const Call call) {
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, threads = gridDim.x * (long long)THREADS;
  double sum = 0;
  for (long long i = thread; i < call.length; i += threads) {
    sum += call.aligned ? pair<CORNERS>(call, i) : pair<1>(call, i);
  }
  if (!call.sums) return;
  sum = of_block(sum, Add(), 0.0);
  if (threadIdx.x == 0) call.sums[blockIdx.x] = sum;
}
