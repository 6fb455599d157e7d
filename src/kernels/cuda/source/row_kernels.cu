// The kernels of losses of rows, around `row_loss`.

#ifndef OWN_MEAN
// Whether `row_loss` itself multiplies by what the mean needs.
#define OWN_MEAN 0
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) rows(const RowCall call) {
  const Real mean = call.parts ? Real(of_mean(call.counts, call.parts)) : Real(1);
  Real common = OWN_MEAN ? call.factor : call.factor * mean;
  if (call.factors && !call.each) common *= number_of(*call.factors);
  const int at_once = THREADS / Group::SIZE;
  double sum = 0;
  int without = 0;
  // All threads of a warp go on as long as one of them has a row, since they hand each other numbers.
  for (long long first = blockIdx.x * (long long)at_once; first < call.rows; first += gridDim.x * (long long)at_once) {
    const long long row = first + threadIdx.x / Group::SIZE;
    const bool exists = row < call.rows;
    const Real factor = call.each && exists ? common * number_of(call.factors[row]) : common;
    bool invalid = false;
    const Real loss = row_loss(call, factor, mean, row, exists, invalid);
    if (Group::rank() != 0 || !exists) continue;
    sum += loss;
    without += invalid;
    if (call.losses) call.losses[row] = narrowed(loss);
  }
  if (PARTIAL && without && call.note) *call.note = false;
  if (!call.sums) return;
  sum = of_block(sum, Add(), 0.0);
  if (PARTIAL) without = of_block(without, Add(), 0);
  if (threadIdx.x != 0) return;
  call.sums[blockIdx.x] = sum;
  if (PARTIAL) call.sums[gridDim.x + blockIdx.x] = without;
}
