// Losses of log p of a row's target and of log Σ exp(x), as the formula `evaluate` has them, with smoothing. With
// f = evaluate(log p[t], log Σ exp(x)) a row's loss is (1 − ε) w[t] f + ε/C Σ w[c] (−log p[c]).

// Writes the gradient of a chunk: `of_exponential` times exp(x − max) less `of_weight` times the weight, and at the
// target `of_target` instead of the product.
DEVICE void derive(const RowCall& call, long long start, int first, int classes, int target, Real of_exponential,
                   Real of_target, Real of_weight, Real* numbers) {
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    numbers[j] = class_at(first, j) == target ? of_target : numbers[j] * of_exponential;
  }
  if (call.spread != 0) {
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      const int c = class_at(first, j);
      numbers[j] -= c < classes ? of_weight * weight_of(call, c) : Real(0);
    }
  }
  write(call, start, first, classes, numbers);
}

// The loss of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  const long long start = start_of(call, row);
  const int target = exists ? target_of(call, row) : -1;
  const int classes = target < 0 ? 0 : call.classes;
  Exponentials known = {-INFINITE_REAL, 0, 0, 0};
  Real numbers[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
    add(call, first, classes, target, numbers, &known);
  }
  const Softmax of = softmax_of(call, known, logit_of(call, start, target));
  if (!exists) return 0;
  if (target < 0) return loss_without_class(call, start, target, invalid);
  Real of_log_p = 0, of_log_sum = 0;
  const Real loss = evaluate(of.log_p, of.most + of.log_of_sum, call.p, &of_log_p, &of_log_sum);
  const Real weight = call.own * weight_of(call, target);
  if (call.gradient) {
    // ∂ log p[t] / ∂x[c] is 1 − p[t] at the target and −p[c] elsewhere; ∂ log Σ exp(x) / ∂x[c] is p[c].
    const Real of_row = factor * (weight * of_log_sum + call.spread * of.total);
    const Real of_p = of_row - factor * weight * of_log_p;
    // Computed from 1 − p[t]: p − 1 would lose its digits where p is near 1.
    const Real of_target = of_row - of.others / of.sum * of_p, of_weight = factor * call.spread;
#if HELD
    derive(call, start, 0, classes, target, of_p / of.sum * of.shift, of_target, of_weight, numbers);
#else
    // Backwards, since what was read last is still in the cache.
    for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
      read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) numbers[j] = exp(numbers[j] - of.most);
      derive(call, start, first, classes, target, of_p / of.sum, of_target, of_weight, numbers);
    }
#endif
  }
  return weight * loss + call.spread * of.smooth;
}
