// The terms of the pairs of a matrix [rows, columns], and their sums. Before this stand the functions of the formula:
// `same_term` and `other_term` give the term of an element and its derivative; what is in `in_double` gives the loss of
// a row or of a positive.

struct Call {
  const Element* matrix;
  // The labels; null for the number of the row, modulo `period`, or of the column.
  const long long* row_labels;
  const long long* column_labels;
  // A number of each row that is not in the matrix; null for none.
  const Element* beside;
  // Of each row: see `Row`.
  double* sums;
  // The same of each part of a row, and later, in their place, what each part adds to the weights of its row; null where
  // rows are not shared.
  double* room;
  // Of each block: two sums, and how many numbers they have; see `pairs_finish`.
  double* totals;
  // Of each row: what its derivatives are made of.
  double* weights;
  // What the derivatives are multiplied by, of pairs with one label and of others.
  double* scales;
  void* loss;
  const void* grad;
  Element* gradient;
  Element* of_beside;
  long long rows, columns, period;
  // A long row is shared by `parts` groups of threads, each of which has this many columns. In the gradient shorter ones
  // are, too.
  long long part, parts;
  // Losses count that are above `low` and below `high`; NaN for no bound.
  double low, high;
  double of_loss[LOSS_PARAMETERS + 1];
  // Whether row i and column i are the same sample, so that they form no pair.
  int own;
  int mean;
  int aligned;
  // Whether the loss and its gradient are of double precision, else of single precision.
  int wide;
  Real p[PARAMETERS + 1];
};

#define SAME 0
#define OTHER 1
#define ALL 0xffffffffu
#define GROUPS (THREADS / GROUP)
// That a processor may have one block alone keeps the compiler from a stack, with which more of them would fit.
#define BOUNDS __launch_bounds__(THREADS, 1)

// The number of the thread's group among those of all blocks, and how many there are.
DEVICE long long group() { return blockIdx.x * (long long)GROUPS + threadIdx.x / GROUP; }
DEVICE long long groups() { return gridDim.x * (long long)GROUPS; }

// A soft maximum over nothing, as in the tensor operations: so small that its exponential is 0, but its difference from
// itself is a number.
#if DOUBLE
#define LEAST (-8.98846567431158e+307)
#else
#define LEAST (-1.7014117e+38f)
#endif

// How many terms a thread adds up in single precision.
#define STRETCH 64
#define IS_WIDE (sizeof(Real) == sizeof(double))

// The sum, or the largest number, of the threads of a row, for all of them.
template <class T>
DEVICE T sum_of_group(T number) {
  return GROUP == WARP ? __shfl_sync(ALL, of_warp(number, Add()), 0) : of_block(number, Add(), T(0));
}

DEVICE Real largest_of_group(Real number) {
  return GROUP == WARP ? __shfl_sync(ALL, of_warp(number, Larger()), 0) : of_block(number, Larger(), Real(LEAST));
}

template <class T>
DEVICE bool counts(const Call& call, T loss) {
  return !(loss <= T(call.low) || loss >= T(call.high));
}

DEVICE long long label_of_row(const Call& call, long long row) {
  return call.row_labels ? call.row_labels[row] : row % call.period;
}

// Elements of a row that lie beside each other, and whether each has the label of the row.
template <int LENGTH>
struct Columns {
  Real x[LENGTH];
  bool same[LENGTH], pair[LENGTH];

  DEVICE Columns(const Call& call, long long row, long long label, long long column) {
    const PackOf<Element, LENGTH> pack = *(const PackOf<Element, LENGTH>*)(call.matrix + row * call.columns + column);
    PackOf<long long, LENGTH> labels;
    if (call.column_labels) labels = *(const PackOf<long long, LENGTH>*)(call.column_labels + column);
    for (int i = 0; i < LENGTH; i++) {
      x[i] = widened(pack.elements[i]);
      same[i] = (call.column_labels ? labels.elements[i] : column + i) == label;
      pair[i] = !(call.own && column + i == row);
    }
  }
};

// The columns that a group has of a row: the i-th part of all rows.
struct Part {
  long long row, from, to;

  DEVICE Part(const Call& call, long long i, long long parts) {
    row = i / parts;
    from = i % parts * call.part;
    to = parts == 1 || from + call.part > call.columns ? call.columns : from + call.part;
  }
};

// How many groups share the sums of a row.
DEVICE long long parts_of_sums(const Call& call) { return call.room ? call.parts : 1; }

// The sums of a few terms of one kind.
struct Terms {
  Real most = LEAST, exponentials = 0, sum = 0;
  int count = 0;

  DEVICE void add(const Call& call, Real term) {
    if (SOFT) {
      const bool larger = term > most;
      // Infinities are equal and have no difference.
      const Real factor = term == most ? Real(1) : exp(-fabs(term - most));
      exponentials = larger ? exponentials * factor + 1 : exponentials + factor;
      most = larger ? term : most;
    } else if (!counts(call, term)) {
      return;
    }
    sum += term;
    count++;
  }
};

// The sums of all terms of one kind in a row: first those that a thread has seen, then those of all.
struct Sums {
  Real most = LEAST;
  double exponentials = 0, sum = 0, count = 0;

  DEVICE void add(Real of_most, double of_exponentials, double of_sum, double of_count) {
    if (SOFT) {
      const bool larger = of_most > most;
      const Real factor = of_most == most ? Real(1) : exp(-fabs(of_most - most));
      exponentials = larger ? exponentials * factor + of_exponentials : exponentials + of_exponentials * factor;
      most = larger ? of_most : most;
    }
    sum += of_sum;
    count += of_count;
  }

  DEVICE void add(const Terms& terms) { add(terms.most, terms.exponentials, terms.sum, terms.count); }

  // Adds what `store` has stored.
  DEVICE void add(const double* from) { add(Real(from[0]), from[2], from[4], from[6]); }

  // Stores them as `Row` has those of a kind.
  DEVICE void store(double* to) const {
    to[0] = most;
    to[2] = exponentials;
    to[4] = sum;
    to[6] = count;
  }

  DEVICE void gather() {
    if (SOFT) {
      const Real largest = largest_of_group(most);
      exponentials = sum_of_group(most == largest ? exponentials : exponentials * exp(most - largest));
      most = largest;
    }
    sum = sum_of_group(sum);
    count = sum_of_group(count);
  }
};

template <int LENGTH>
DEVICE void add_columns(const Call& call, const Part& part, long long label, int thread, Sums* same, Sums* other) {
  const long long row = part.row;
  long long column = part.from + thread * LENGTH;
  do {
    Terms of_same, of_other;
    for (int k = 0; (IS_WIDE || k < STRETCH / LENGTH) && column < part.to; k++, column += GROUP * LENGTH) {
      const Columns<LENGTH> columns(call, row, label, column);
      for (int i = 0; i < LENGTH; i++) {
        if (!columns.pair[i]) continue;
        Real term[2];
        if (!columns.same[i]) {
          other_term(columns.x[i], call.p + SAME_PARAMETERS, term);
          of_other.add(call, term[0]);
        } else if (!EACH) {
          same_term(columns.x[i], call.p, term);
          of_same.add(call, term[0]);
        }
      }
    }
    same->add(of_same);
    other->add(of_other);
  } while (!IS_WIDE && column < part.to);
}

// The sums of a row or of its part, for all of its threads.
DEVICE void sum_up(const Call& call, const Part& part, int thread, Sums* same, Sums* other) {
  const long long label = label_of_row(call, part.row);
  if (call.aligned) {
    add_columns<PACK>(call, part, label, thread, same, other);
  } else {
    add_columns<1>(call, part, label, thread, same, other);
  }
  if (!EACH) same->gather();
  other->gather();
}

#define ROW_SUMS 8

// The sums of a row in memory: those of pairs with the same label at SAME, those of others at OTHER.
struct Row {
  double most[2], exponentials[2], sums[2], counts[2];

  DEVICE Row(const Call& call, long long row) {
    const double* const from = call.sums + row * ROW_SUMS;
    for (int k = 0; k < 2; k++) {
      most[k] = from[k];
      // The largest term has the exponential 1. Without terms it stands for `LEAST`.
      exponentials[k] = from[2 + k] < 1 ? 1 : from[2 + k];
      sums[k] = from[4 + k];
      counts[k] = from[6 + k];
    }
  }

  DEVICE double log_sum_exp(int kind) const { return most[kind] + log(exponentials[kind]); }
};

// The sums of all rows, or of the parts of long ones. A warp or a block has a row or a part.
extern "C" __global__ void BOUNDS pairs_rows(const Call call) {
  const int thread = threadIdx.x % GROUP;
  const long long parts = parts_of_sums(call), all = call.rows * parts;
  for (long long i = group(); i < all; i += groups()) {
    Sums same, other;
    sum_up(call, Part(call, i, parts), thread, &same, &other);
    if (thread != 0) continue;
    double* const to = (call.room ? call.room : call.sums) + i * ROW_SUMS;
    same.store(to + SAME);
    other.store(to + OTHER);
  }
}

// The sums of long rows, of those of their parts. A block has a row.
extern "C" __global__ void BOUNDS pairs_whole(const Call call) {
  const int thread = threadIdx.x % GROUP;
  for (long long row = group(); row < call.rows; row += groups()) {
    Sums same, other;
    for (long long part = thread; part < call.parts; part += GROUP) {
      const double* const from = call.room + (row * call.parts + part) * ROW_SUMS;
      if (!EACH) same.add(from + SAME);
      other.add(from + OTHER);
    }
    if (!EACH) same.gather();
    other.gather();
    if (thread != 0) continue;
    double* const to = call.sums + row * ROW_SUMS;
    same.store(to + SAME);
    other.store(to + OTHER);
  }
}

// What the threads of a block have added up.
DEVICE void store_totals(const Call& call, const double* totals) {
  for (int k = 0; k < 4; k++) {
    const double total = of_block(totals[k], Add(), 0.0);
    if (threadIdx.x == 0) call.totals[blockIdx.x * 4 + k] = total;
  }
}

DEVICE double scale_of(const Call& call, double count) { return call.mean ? 1 / (count < 1 ? 1 : count) : 1; }

// The loss and the scales, of the totals of so many blocks. Those of rows and of positives have the losses and how many
// count, and how many pairs have different labels; those of terms have the sums and numbers of both kinds. One block.
extern "C" __global__ void __launch_bounds__(THREADS) pairs_finish(const Call call, int blocks) {
  double totals[4] = {};
  for (int k = 0; k < 4; k++) {
    for (int block = threadIdx.x; block < blocks; block += THREADS) totals[k] += call.totals[block * 4 + k];
    totals[k] = of_block(totals[k], Add(), 0.0);
  }
  if (threadIdx.x != 0) return;
  double scales[2], loss;
  if (SOFT) {
    const bool none = NEEDS_NEGATIVES && totals[3] == 0;
    scales[SAME] = scales[OTHER] = none ? 0 : scale_of(call, totals[2]);
    loss = none ? 0 : totals[0] * scales[SAME];
  } else {
    for (int k = 0; k < 2; k++) scales[k] = scale_of(call, totals[2 + k]);
    loss = totals[0] * scales[SAME] + totals[1] * scales[OTHER];
  }
  for (int k = 0; k < 2; k++) call.scales[k] = scales[k];
  if (call.wide) {
    *(double*)call.loss = loss;
  } else {
    *(float*)call.loss = float(loss);
  }
}

// The gradient of the loss times the scale of its kind of pairs.
DEVICE double factor_of(const Call& call, int kind) {
  const double grad = call.wide ? *(const double*)call.grad : double(*(const float*)call.grad);
  return grad * call.scales[kind];
}

// What the derivatives of the terms of one kind in a row are multiplied by: `soft` exp(t − `shift`) + `plain`.
struct Weight {
  Real soft, shift, plain;

  DEVICE Real of(const Call& call, Real term) const {
    if (SOFT) return fma(exp(term - shift), soft, plain);
    return counts(call, term) ? plain : Real(0);
  }
};
