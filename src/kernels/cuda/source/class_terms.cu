// Losses with a term for every class of a softmax, as the formulas `of_target` and `of_other` have them. With the
// slopes s[c] of the terms with respect to log p[c] and S = Σ s, a row's gradient is s[c] − p[c] S.

// The sums of a row's terms and of their slopes, without those of the target.
struct Terms {
  Real terms;
  Real slopes;
};

// The loss of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  const long long start = start_of(call, row);
  const int target = exists ? target_of(call, row) : -1;
  const int classes = target < 0 ? 0 : call.classes;
  Exponentials known = {-INFINITE_REAL, 0, 0, 0};
  Real numbers[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
    Real exponentials[NUMBERS];
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) exponentials[j] = numbers[j];
    add(call, first, classes, target, exponentials, &known);
  }
  const Softmax of = softmax_of(call, known, logit_of(call, start, target));
  Terms part = {0, 0};
  for (int first = 0; first < classes; first += CHUNK) {
    if (!HELD) read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      const int c = class_at(first, j);
      Real slope;
      const Real term = of_other(numbers[j] - of.most - of.log_of_sum, call.p + TARGET_PARAMETERS, &slope);
      const bool counts = c < classes && c != target;
      part.terms += counts ? term : Real(0);
      part.slopes += counts ? slope : Real(0);
    }
  }
  const Real terms = Group::all(part.terms, Add(), Real(0)), of_others = Group::all(part.slopes, Add(), Real(0));
  if (!exists) return 0;
  if (target < 0) return loss_without_class(call, start, target, invalid);
  const Real p = of.own / of.sum;
  Real slope;
  const Real term = of_target(of.log_p, p, call.p, &slope);
  if (call.gradient) {
    const Real of_p = factor * (of_others + slope);
    // At the target s − p S is computed as s (1 − p) − p (S − s): p near 1 has lost the digits of 1 − p.
    const Real of_own = factor * (slope * of.others / of.sum - p * of_others);
    for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
      if (!HELD) read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) {
        Real of_log_p;
        of_other(numbers[j] - of.most - of.log_of_sum, call.p + TARGET_PARAMETERS, &of_log_p);
        const Real gradient = of_log_p * factor - exp(numbers[j] - of.most) / of.sum * of_p;
        numbers[j] = class_at(first, j) == target ? of_own : gradient;
      }
      write(call, start, first, classes, numbers);
    }
  }
  return terms + term;
}
