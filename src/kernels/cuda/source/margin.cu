// Hinges between the score of a row's target and those of the other classes: of all of them or, with STRONGEST, of the
// strongest one.

// `number`, but 0 where it is below. NaN stays.
DEVICE Real at_least_zero(Real number) { return number < 0 ? Real(0) : number; }

#if STRONGEST
// The scores of the classes that a thread has seen, with 0 in place of the target's: the greatest one, how many are
// equal to it, and how many are NaN.
struct Rivals {
  Real best;
  Real equal;
  Real unordered;
};

// The loss max(0, margin − x[t] + max(0, x[c], …)) of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  const long long start = start_of(call, row);
  const int target = exists ? target_of(call, row) : -1;
  const int classes = target < 0 ? 0 : call.classes;
  Rivals known = {-INFINITE_REAL, 0, 0};
  Real numbers[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      numbers[j] = class_at(first, j) == target ? Real(0) : numbers[j];
      known.equal = numbers[j] > known.best ? Real(1) : known.equal + (numbers[j] == known.best ? Real(1) : Real(0));
      known.best = fmax(known.best, numbers[j]);
      known.unordered += numbers[j] != numbers[j] ? Real(1) : Real(0);
    }
  }
  const Real most = Group::all(known.best, Larger(), -INFINITE_REAL);
  const Real equal = Group::all(known.best == most ? known.equal : Real(0), Add(), Real(0));
  const Real unordered = Group::all(known.unordered, Add(), Real(0));
  if (!exists) return 0;
  if (target < 0) return loss_without_class(call, start, target, invalid);
  const Real best = unordered == 0 ? most : NAN_REAL;
  const Real hinge = at_least_zero(best - widened(call.input[place_of(call, start, target)]) + call.p[0]);
  if (!call.gradient) return hinge;
  if (hinge == 0) {
    fill(call, start, classes, Real(0));
    return hinge;
  }
  // Equally strong classes get equal parts of the gradient. Where the strongest is NaN, the gradient of all is.
  const Real part = factor / equal, rest = unordered == 0 ? Real(0) : NAN_REAL;
  for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
    if (!HELD) read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      const Real slope = numbers[j] == best ? part : rest;
      numbers[j] = class_at(first, j) == target ? -factor : slope;
    }
    write(call, start, first, classes, numbers);
  }
  return hinge;
}
#else
// The loss of a row, Σ max(0, margin − x[t] + x[c]) w[t] / C or that of the squares, for all threads that share it;
// they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  const long long start = start_of(call, row);
  const int target = exists ? target_of(call, row) : -1;
  const int classes = target < 0 ? 0 : call.classes;
  const Real gap = target < 0 ? Real(0) : call.p[0] - widened(call.input[place_of(call, start, target)]);
  Real part = 0, part_of_slopes = 0;
  Real numbers[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      const int c = class_at(first, j);
      numbers[j] = c < classes && c != target ? at_least_zero(gap + numbers[j]) : Real(0);
      part += SQUARED ? numbers[j] * numbers[j] : numbers[j];
      part_of_slopes += numbers[j] == 0 ? Real(0) : SQUARED ? 2 * numbers[j] : Real(1);
    }
  }
  const Real sum = Group::all(part, Add(), Real(0)), slopes = Group::all(part_of_slopes, Add(), Real(0));
  if (!exists) return 0;
  if (target < 0) return loss_without_class(call, start, target, invalid);
  const Real weight = weight_of(call, target) / call.classes, of_hinge = factor * weight;
  if (call.gradient) {
    for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
      if (!HELD) read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) {
        const Real hinge = HELD ? numbers[j] : at_least_zero(gap + numbers[j]);
        const Real slope = hinge == 0 ? Real(0) : (SQUARED ? 2 * hinge : Real(1)) * of_hinge;
        numbers[j] = class_at(first, j) == target ? -slopes * of_hinge : slope;
      }
      write(call, start, first, classes, numbers);
    }
  }
  return sum * weight;
}
#endif
