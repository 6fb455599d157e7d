// The kernels of losses of rows, around `row_loss`.

#ifndef OWN_MEAN
// Whether `row_loss` itself multiplies by what the mean needs.
#define OWN_MEAN 0
#endif

// What the sum of the losses is multiplied by in a mean over what has been counted. NaN where nothing counts: without
// this the terms that smoothing spreads over the other classes would make the mean infinite.
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) rows(const RowCall call) {
  const Real mean = call.parts ? Real(of_mean(call.counts, call.parts)) : Real(1);
  Real common = OWN_MEAN ? call.factor : call.factor * mean;
  if (call.factors && !call.each) common *= widened(*call.factors);
  const int at_once = THREADS / Group::SIZE;
  double sum = 0;
  // All threads of a warp go on as long as one of them has a row, since they hand each other numbers.
  for (long long first = blockIdx.x * (long long)at_once; first < call.rows; first += gridDim.x * (long long)at_once) {
    const long long row = first + threadIdx.x / Group::SIZE;
    const bool exists = row < call.rows;
    const Real factor = call.each && exists ? common * widened(call.factors[row]) : common;
    const Real loss = row_loss(call, factor, mean, row, exists);
    if (Group::rank() != 0 || !exists) continue;
    sum += loss;
    if (call.losses) call.losses[row] = narrowed(loss);
  }
  if (!call.sums) return;
  sum = of_block(sum, Add(), 0.0);
  if (threadIdx.x == 0) call.sums[blockIdx.x] = sum;
}

// What a mean is over: the sum of the weights of the targets that are not ignored, and how many of these weights are
// not 0, of each block.
extern "C" __global__ void __launch_bounds__(THREADS) count(const RowCall call) {
  const long long threads = gridDim.x * (long long)THREADS;
  double weight = 0, number = 0;
  for (long long row = blockIdx.x * (long long)THREADS + threadIdx.x; row < call.rows; row += threads) {
    const int target = target_of(call, row);
    if (target == -1) continue;
    const Real own = target < 0 ? Real(1) : weight_of(call, target);
    weight += own;
    number += own != 0;
  }
  weight = of_block(weight, Add(), 0.0);
  number = of_block(number, Add(), 0.0);
  if (threadIdx.x != 0) return;
  call.counts[2 * blockIdx.x] = weight;
  call.counts[2 * blockIdx.x + 1] = number;
}

// The reduced loss: the sum of the sums of blocks, in a fixed order, times a number and over what has been counted. One
// block.
extern "C" __global__ void __launch_bounds__(THREADS)
    finish_rows(const double* sums, int blocks, double scale, const double* counts, int parts, Element* loss) {
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += THREADS) sum += sums[i];
  sum = of_block(sum, Add(), 0.0);
  if (parts) scale *= of_mean(counts, parts);
  if (threadIdx.x == 0) *loss = narrowed(Real(sum * scale));
}
