// The negative log likelihood: −w[t] x[t] of each row with its target t.

// The loss of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  if (!exists) return 0;
  const long long start = start_of(call, row);
  const int target = target_of(call, row);
  if (target < 0) return loss_without_class(call, start, target, invalid);
  const Real weight = weight_of(call, target);
  if (call.gradient) {
    for (int first = 0; first < call.classes; first += CHUNK) {
      Real numbers[NUMBERS];
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) numbers[j] = class_at(first, j) == target ? -weight * factor : Real(0);
      write(call, start, first, call.classes, numbers);
    }
  }
  return -widened(call.input[place_of(call, start, target)]) * weight;
}
