// What a mean over rows is over.

struct Call {
  const long long* target;
  // A weight for each class, or none.
  const Real* weights;
  double* counts;
  long long rows;
  long long ignored;
  int classes;
  // Whether a target may be `ignored`.
  int ignores;
};

// The sum of the weights of the targets that are not ignored, and how many of these weights are not 0, of each block.
extern "C" __global__ void __launch_bounds__(THREADS) count(const Call call) {
  const long long threads = gridDim.x * (long long)THREADS;
  double weight = 0, number = 0;
  for (long long row = blockIdx.x * (long long)THREADS + threadIdx.x; row < call.rows; row += threads) {
    const int target = class_of(call.target[row], call.ignores, call.ignored, call.classes);
    if (target == -1) continue;
    const Real own = target < 0 || !call.weights ? Real(1) : call.weights[target];
    weight += own;
    number += own != 0;
  }
  weight = of_block(weight, Add(), 0.0);
  number = of_block(number, Add(), 0.0);
  if (threadIdx.x != 0) return;
  call.counts[2 * blockIdx.x] = weight;
  call.counts[2 * blockIdx.x + 1] = number;
}
