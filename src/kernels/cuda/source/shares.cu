// The cross entropy of rows whose target has a share for each class. With the targets t[c] = w[c] ((1 − ε) y[c] + ε/C),
// made of the shares y, and T = Σ t, a row's loss is T log Σ exp(x − max) + Σ t (max − x), and its gradient T p[c] −
// t[c].

// What a thread knows of a row: the largest logit that it has seen, the target of that class and the sum of all others,
// Σ exp(x − max) without it, Σ t (max − x), and Σ t of the classes that are not masked by −∞.
struct Shares {
  Real max;
  Real top;
  Real lesser;
  Real others;
  Real distances;
  Real counted;
};

#if POSITIONS
// The targets of this thread in a chunk: the two classes beside the row's position have it in proportion to how near
// they are.
DEVICE void read_targets(const RowCall& call, long long row, long long, int first, int classes, Real* targets) {
  const Real position = widened(((const Element*)call.target)[row]);
  const int left = int(position) < classes - 2 ? int(position) : classes - 2;
  const Real of_right = position - left;
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    const int c = class_at(first, j);
    targets[j] = c == left ? 1 - of_right : c == left + 1 ? of_right : Real(0);
  }
}

// Whether the target of a row has a meaning; NaN has none.
DEVICE bool is_valid(const RowCall& call, long long row) {
  const Real position = widened(((const Element*)call.target)[row]);
  return position >= 0 && position <= call.classes - 1;
}
#else
DEVICE void read_targets(const RowCall& call, long long, long long start, int first, int classes, Real* targets) {
  read(call, (const Element*)call.target, start, first, classes, Real(0), targets);
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    const int c = class_at(first, j);
    targets[j] = c < classes ? fma(targets[j], call.own, call.spread) * weight_of(call, c) : Real(0);
  }
}

DEVICE bool is_valid(const RowCall&, long long) { return true; }
#endif

// Adds the logits of a chunk with their targets, and replaces them by exp(x − max).
DEVICE void add(const Real* targets, Real* numbers, Shares* known) {
  Real max = known->max;
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) max = fmax(max, numbers[j]);
  // Where all classes so far are masked by −∞, their exponentials are 0, and not those of ∞ − ∞.
  const Real base = max == -INFINITE_REAL ? Real(0) : max;
  bool rises = max > known->max;
  if (known->counted != 0) known->distances += known->counted * (base - known->max);
  if (rises) {
    known->others = (known->others + 1) * exp(known->max - max);
    known->lesser += known->top;
    known->top = 0;
  }
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    // A masked class with target 0 adds 0, and not 0 · ∞. Its distance does not grow with the maximum.
    known->distances += targets[j] == 0 ? Real(0) : targets[j] * (base - numbers[j]);
    known->counted += numbers[j] == -INFINITE_REAL ? Real(0) : targets[j];
    const bool most = rises && numbers[j] == max;
    rises = rises && !most;
    numbers[j] = exp(numbers[j] - base);
    known->others += most ? Real(0) : numbers[j];
    known->lesser += most ? Real(0) : targets[j];
    known->top = most ? targets[j] : known->top;
  }
  known->max = max;
}

// Writes the gradient of a chunk: `of_exponential` times exp(x − max) less `factor` times the target, and `of_peak` at
// the class that has p > ½, whose exponential is 1.
DEVICE void derive(const RowCall& call, long long start, int first, int classes, const Real* targets, Real factor,
                   Real of_exponential, bool peaked, Real of_peak, Real* numbers) {
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    const Real slope = numbers[j] * of_exponential - factor * targets[j];
    numbers[j] = peaked && numbers[j] == 1 ? of_peak : slope;
  }
  write(call, start, first, classes, numbers);
}

// The loss of a row, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real, long long row, bool exists, bool& invalid) {
  const long long start = start_of(call, row);
  const bool valid = exists && is_valid(call, row);
  const int classes = valid ? call.classes : 0;
  Shares known = {-INFINITE_REAL, 0, 0, 0, 0, 0};
  Real numbers[NUMBERS], targets[NUMBERS];
  for (int first = 0; first < classes; first += CHUNK) {
    read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
    read_targets(call, row, start, first, classes, targets);
    add(targets, numbers, &known);
  }
  const Real most = Group::all(known.max, Larger(), -INFINITE_REAL);
  const bool has_most = known.max == most;
  const Real shift = exp(known.max - most);
  const Real others = Group::all(has_most ? known.others : (known.others + 1) * shift, Add(), Real(0));
  const Real lesser = Group::all(has_most ? known.lesser : known.lesser + known.top, Add(), Real(0));
  const Real total = lesser + Group::all(has_most ? known.top : Real(0), Add(), Real(0));
  // A row whose largest logit is infinite has no softmax: most − most is NaN.
  const Real sum = others + Group::all(has_most ? Real(1) : Real(0), Add(), Real(0)) + (most - most);
  const Real risen = known.counted == 0 ? Real(0) : known.counted * (most - known.max);
  const Real distances = Group::all(known.distances + risen, Add(), Real(0));
  if (!exists) return 0;
  if (!valid) return loss_without_class(call, start, -2, invalid);
  // The class with the largest logit has p > ½.
  const bool peaked = sum < 2;
  const Real of_p = factor * total / sum;
  if (call.gradient) {
    // There the gradient T p − t is computed as (T − t) − T (1 − p): p near 1 has lost the digits of 1 − p.
    const Real of_peak = factor * lesser - others * of_p;
#if HELD
    derive(call, start, 0, classes, targets, factor, of_p * shift, peaked && has_most, of_peak, numbers);
#else
    for (int first = (classes - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
      read(call, call.input, start, first, classes, -INFINITE_REAL, numbers);
      read_targets(call, row, start, first, classes, targets);
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) numbers[j] = exp(numbers[j] - most);
      derive(call, start, first, classes, targets, factor, of_p, peaked, of_peak, numbers);
    }
#endif
  }
  return distances + total * (peaked ? log1p(others) : log(sum));
}
