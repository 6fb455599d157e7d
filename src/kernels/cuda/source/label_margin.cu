// Hinges between the score of each label of a row and those of all its other classes: Σ max(0, 1 − x[t] + x[c]) / C
// over the labels t, which end at the first −1, and the classes c that are no label. A row is shared by whole warps,
// which go through its labels together, and all of it is held.

// The argument of a hinge, in the order in which libtorch adds.
DEVICE Real hinge(Real score, Real other) { return (1 - score) + other; }

// Whether all entries of a row are labels or −1, also those behind the end of the list.
DEVICE bool are_valid(const long long* labels, int classes) {
  Real invalid = 0;
  for (int place = Group::rank(); place < classes; place += Group::SIZE) {
    invalid += labels[place] < -1 || labels[place] >= classes ? Real(1) : Real(0);
  }
  return Group::all(invalid, Add(), Real(0)) == 0;
}

// The loss of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  if (!exists) return 0;
  const long long start = start_of(call, row);
  const long long* labels = (const long long*)call.target + start;
  const int classes = call.classes;
  if (!are_valid(labels, classes)) return loss_without_class(call, start, -2, invalid);
  Real numbers[NUMBERS], slopes[NUMBERS];
  bool counts[NUMBERS];
  read(call, call.input, start, 0, classes, -INFINITE_REAL, numbers);
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    slopes[j] = 0;
    counts[j] = class_at(0, j) < classes;
  }
  int length = 0;
  for (; length < classes && labels[length] >= 0; length++) {
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) counts[j] = counts[j] && class_at(0, j) != labels[length];
  }
  Real sum = 0;
  for (int place = 0; place < length; place++) {
    const int label = int(labels[place]);
    const Real score = widened(call.input[place_of(call, start, label)]);
    Real part = 0;
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      // A hinge of NaN adds nothing.
      const Real gap = hinge(score, numbers[j]);
      const bool costs = counts[j] && gap > 0;
      sum += costs ? gap : Real(0);
      slopes[j] += costs ? Real(1) : Real(0);
      part += costs ? Real(1) : Real(0);
    }
    const Real open = Group::all(part, Add(), Real(0));
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) slopes[j] -= class_at(0, j) == label ? open : Real(0);
  }
  sum = Group::all(sum, Add(), Real(0));
  if (call.gradient) {
    const Real of_slope = factor / classes;
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) slopes[j] *= of_slope;
    write(call, start, 0, classes, slopes);
  }
  return sum / classes;
}
