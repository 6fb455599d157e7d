
// The weights of a row: that of its negatives, the largest term of these, and log Σ exp of their terms.
#define WEIGHTS 3

// The loss of a positive in double precision, and its derivatives with respect to the element and to log Σ exp of the
// negatives of its row and of its column: 0 where the loss does not count.
struct Positive {
  double loss, of_element, of_row, of_column;
  bool counted;

  DEVICE Positive(const Call& call, double element, double negatives, double of_other) {
    const double numbers[3] = {element, negatives, of_other};
    double q[4];
    in_double::positive_loss(numbers, call.of_loss, q);
    counted = counts(call, q[0]);
    loss = counted ? q[0] : 0;
    of_element = counted ? q[1] : 0;
    of_row = counted ? q[2] : 0;
    of_column = counted ? q[3] : 0;
  }
};

// Writes the weights of a row, given the sum of the derivatives with respect to its negatives.
DEVICE void store_weights(const Call& call, long long row, const Row& of, double slope) {
  double* const weights = call.weights + row * WEIGHTS;
  weights[0] = slope / of.exponentials[OTHER];
  weights[1] = of.most[OTHER];
  weights[2] = of.log_sum_exp(OTHER);
}

// The losses of all positives. A warp or a block has those of a row or of a part of it.
extern "C" __global__ void BOUNDS positives_of_rows(const Call call) {
  const int thread = threadIdx.x % GROUP;
  const long long parts = parts_of_sums(call), all = call.rows * parts;
  double totals[4] = {};
  for (long long i = group(); i < all; i += groups()) {
    const Part part(call, i, parts);
    const long long row = part.row, label = label_of_row(call, row);
    const Row of(call, row);
    const double negatives = of.log_sum_exp(OTHER);
    double slope = 0;
    for (long long column = part.from + thread; column < part.to; column += GROUP) {
      const Columns<1> columns(call, row, label, column);
      if (!columns.pair[0] || !columns.same[0]) continue;
      const double of_column = BOTH ? Row(call, column).log_sum_exp(OTHER) : double(LEAST);
      const Positive own(call, columns.x[0], negatives, of_column);
      totals[0] += own.loss;
      totals[2] += own.counted;
      slope += own.of_row;
      if (!BOTH) continue;
      // The column's own loss with this row.
      const double across = widened(call.matrix[column * call.columns + row]);
      slope += Positive(call, across, of_column, negatives).of_column;
    }
    slope = sum_of_group(slope);
    if (thread != 0) continue;
    // Whether there are any, is all that is asked of it.
    totals[3] += of.counts[OTHER];
    if (call.room) {
      call.room[i] = slope;
    } else {
      store_weights(call, row, of, slope);
    }
  }
  store_totals(call, totals);
}

// The weights of long rows, of what their parts have left. A thread has a row.
extern "C" __global__ void BOUNDS positives_whole(const Call call) {
  const long long threads = gridDim.x * (long long)THREADS;
  for (long long row = blockIdx.x * (long long)THREADS + threadIdx.x; row < call.rows; row += threads) {
    double slope = 0;
    for (long long part = 0; part < call.parts; part++) slope += call.room[row * call.parts + part];
    store_weights(call, row, Row(call, row), slope);
  }
}

template <int LENGTH>
DEVICE void derive_columns(const Call& call, const Part& part, int thread) {
  const long long row = part.row, label = label_of_row(call, row);
  const double factor = factor_of(call, SAME);
  const double* const weights = call.weights + row * WEIGHTS;
  const Weight weight = {Real(factor * weights[0]), Real(weights[1]), Real(0)};
  for (long long column = part.from + thread * LENGTH; column < part.to; column += GROUP * LENGTH) {
    const Columns<LENGTH> columns(call, row, label, column);
    PackOf<Element, LENGTH> gradients;
    for (int i = 0; i < LENGTH; i++) {
      Real slope = 0;
      if (columns.pair[i] && columns.same[i]) {
        const double of_column = BOTH ? call.weights[(column + i) * WEIGHTS + 2] : double(LEAST);
        const double own = Positive(call, columns.x[i], weights[2], of_column).of_element;
        // Without any negatives nothing has a loss, whatever it is.
        slope = factor == 0 ? Real(0) : Real(factor * own);
      } else if (columns.pair[i]) {
        Real term[2];
        other_term(columns.x[i], call.p + SAME_PARAMETERS, term);
        slope = weight.of(call, term[0]) * term[1];
      }
      gradients.elements[i] = narrowed(slope);
    }
    *(PackOf<Element, LENGTH>*)(call.gradient + row * call.columns + column) = gradients;
  }
}
