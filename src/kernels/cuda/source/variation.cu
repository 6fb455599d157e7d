
// The elements of a plane that a block adds up at a time.
#define CHUNK (THREADS * 8)

struct Call {
  const Element* planes;
  Element* gradient;
  // What the derivatives are multiplied by, besides `factor`: one number, or one for `each` plane; null for none.
  const Element* factors;
  double* sums;
  long long height, width, chunks, works;
  // How many rows and columns lie between two elements of a thread.
  long long down_rows, right_columns;
  int each, unused;
  // What vertical and horizontal differences are multiplied by.
  Real down, across;
  Real factor;
};

DEVICE Real sign(Real number) { return Real(number > 0) - Real(number < 0); }

// The sums of the differences of each chunk of each plane, and the derivatives of the elements.
extern "C" __global__ void __launch_bounds__(THREADS) variation(const Call call) {
  const long long size = call.height * call.width;
  for (long long work = blockIdx.x; work < call.works; work += gridDim.x) {
    const long long plane = work / call.chunks, begin = work % call.chunks * CHUNK;
    const long long end = begin + CHUNK < size ? begin + CHUNK : size;
    const Element* x = call.planes + plane * size;
    Real factor = call.factor;
    if (GRADIENT && call.factors) factor *= widened(call.factors[call.each ? plane : 0]);
    Real sum = 0;
    long long row = (begin + threadIdx.x) / call.width, column = (begin + threadIdx.x) % call.width;
    for (long long i = begin + threadIdx.x; i < end; i += THREADS) {
      const Real own = widened(x[i]);
      Real slope = 0;
      if (row + 1 < call.height) {
        const Real difference = widened(x[i + call.width]) - own;
        sum += call.down * fabs(difference);
        slope -= call.down * sign(difference);
      }
      if (column + 1 < call.width) {
        const Real difference = widened(x[i + 1]) - own;
        sum += call.across * fabs(difference);
        slope -= call.across * sign(difference);
      }
      if (GRADIENT) {
        if (row > 0) slope += call.down * sign(own - widened(x[i - call.width]));
        if (column > 0) slope += call.across * sign(own - widened(x[i - 1]));
        call.gradient[plane * size + i] = narrowed(slope * factor);
      }
      // A division for each element would take longer than all the rest.
      row += call.down_rows;
      column += call.right_columns;
      if (column >= call.width) {
        column -= call.width;
        row++;
      }
    }
    if (!call.sums) continue;
    const double all = of_block(double(sum), Add(), 0.0);
    if (threadIdx.x == 0) call.sums[work] = all;
  }
}

// The losses of planes, each of which has so many sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    of_planes(const double* sums, long long chunks, long long planes, Element* losses) {
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, threads = gridDim.x * (long long)THREADS;
  for (long long plane = thread; plane < planes; plane += threads) {
    double sum = 0;
    for (long long chunk = 0; chunk < chunks; chunk++) sum += sums[plane * chunks + chunk];
    losses[plane] = narrowed(Real(sum));
  }
}
