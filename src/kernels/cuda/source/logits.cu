// Cross entropy with z-loss of rows of logits, whose gradient overwrites them. p[0] is z, the factor of (log Σ
// exp(x))², and p[1] the soft cap s, where the losses are those of s tanh(x / s) instead of x.

struct LogitCall {
  // The derivatives of the final result with respect to both losses of each row.
  const Real* of_entropy;
  const Real* of_z;
  Real* entropy;
  Real* z;
  // Set to 0 where a target is no class; null where the targets have been checked.
  Real* valid;
  RowCall rows;
};

DEVICE Real capped(const RowCall& call, Real x) { return CAPPED ? tanh(x / call.p[1]) * call.p[1] : x; }

// The derivative of the cap: 4e / (1 + e)² with e = exp(−2|x / s|), because 1 − tanh² loses the digits of a slope near
// 0.
DEVICE Real slope_of_cap(const RowCall& call, Real x) {
  const Real e = exp(Real(-2) * fabs(x / call.p[1])), half = 2 / (1 + e);
  return e * half * half;
}

// Writes the gradient of a chunk of logits over them.
DEVICE void derive(const RowCall& call, long long start, int first, int target, const Softmax& of, Real of_p,
                   Real of_target, Real of_weight, Real* numbers) {
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    const int c = class_at(first, j);
    Real gradient = exp(capped(call, numbers[j]) - of.most) * of_p;
    gradient = c == target ? of_target : gradient;
    if (call.spread != 0) gradient -= c < call.classes ? of_weight * weight_of(call, c) : Real(0);
    numbers[j] = CAPPED ? gradient * slope_of_cap(call, numbers[j]) : gradient;
  }
  write(call, start, first, call.classes, numbers);
}

// The losses of a row, for all threads that share it; they overwrite its logits by the gradient.
DEVICE void row_losses(const LogitCall& logits, long long row, bool exists) {
  const RowCall& call = logits.rows;
  const long long start = start_of(call, row);
  const int target = exists ? target_of(call, row) : -1;
  const int classes = target < 0 ? 0 : call.classes;
  Exponentials known = {-INFINITE_REAL, 0, 0, 0};
  Real numbers[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
    Real exponentials[NUMBERS];
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      exponentials[j] = class_at(first, j) < classes ? capped(call, numbers[j]) : -INFINITE_REAL;
    }
    add(call, first, classes, target, exponentials, &known);
  }
  const Softmax of = softmax_of(call, known, capped(call, logit_of(call, start, target)));
  // No logit is overwritten before all threads have read what they need of the row.
  Group::wait();
  if (!exists) return;
  if (target < 0) {
    bool invalid = false;
    const Real loss = loss_without_class(call, start, target, invalid);
    if (Group::rank() != 0) return;
    logits.entropy[row] = logits.z[row] = loss;
    if (invalid && logits.valid) *logits.valid = 0;
    if (invalid && call.note) *call.note = false;
    return;
  }
  const Real weight = call.own * weight_of(call, target), log_sum = of.most + of.log_of_sum, z = call.p[0];
  if (Group::rank() == 0) {
    logits.entropy[row] = call.spread * of.smooth - weight * of.log_p;
    logits.z[row] = z * log_sum * log_sum;
  }
  if (!call.gradient) return;
  const Real of_entropy = logits.of_entropy[row];
  const Real of_row = of_entropy * call.spread * of.total + 2 * z * log_sum * logits.of_z[row];
  const Real of_p = (of_entropy * weight + of_row) / of.sum, of_weight = of_entropy * call.spread;
  // At the target as p `of_row` − (1 − p) w: p − 1 would lose the digits of a p near 1, and p (w + `of_row`) − w those
  // of w where `of_row` is much larger.
  const Real of_target = (of.own * of_row - of.others * (of_entropy * weight)) / of.sum;
  for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
    if (!HELD) read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
    derive(call, start, first, target, of, of_p, of_target, of_weight, numbers);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) logits(const LogitCall call) {
  const int at_once = THREADS / Group::SIZE;
  const long long rows = call.rows.rows;
  // All threads of a warp go on as long as one of them has a row, since they hand each other numbers.
  for (long long first = blockIdx.x * (long long)at_once; first < rows; first += gridDim.x * (long long)at_once) {
    const long long row = first + threadIdx.x / Group::SIZE;
    row_losses(call, row, row < rows);
  }
}
