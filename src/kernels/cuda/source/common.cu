// The kernels at the end of a pass, which do not depend on the loss.

// The loss: the sum of the sums of `count` blocks, in a fixed order, times a number, and over what has been counted where
// there is something. And where it is asked for, whether all values had a loss, 1 or 0: how many in each block had none
// is behind the sums. One block.
extern "C" __global__ void __launch_bounds__(THREADS) finish(const double* sums, int count, double scale, const double* counts,
                                                             int parts, Element* loss, Element* valid) {
  double sum = 0, invalid = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    sum += sums[i];
    if (valid) invalid += sums[count + i];
  }
  sum = of_block(sum, Add(), 0.0);
  if (valid) invalid = of_block(invalid, Add(), 0.0);
  if (parts) scale *= of_mean(counts, parts);
  if (threadIdx.x != 0) return;
  *loss = narrowed(Real(sum * scale));
  if (valid) *valid = narrowed(Real(invalid == 0 ? 1 : 0));
}

// Multiplies a gradient by that of the loss, which is 1 as a rule: then nothing is read or written. Where not all values had
// a loss, as `valid` tells where it is there, the gradient becomes 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    scale(Element* gradient, long long length, const Element* factor, const Element* valid) {
  const Real number = widened(*factor);
  const bool none = valid && widened(*valid) == 0;
  if (number == 1 && !none) return;
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, threads = gridDim.x * (long long)THREADS;
  for (long long i = thread; i < length; i += threads) {
    gradient[i] = narrowed(none ? Real(0) : widened(gradient[i]) * number);
  }
}
