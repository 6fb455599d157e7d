// The Euclidean distances of all rows of two matrices, from their differences, and the gradient of the first one's rows.
// Both are sums over terms that a row and a column of the result share, as those of a matrix product are: a block has a
// tile of the result and reads the terms into shared memory, a few at a time.

struct Call {
  // [rows, length]
  const Element* a;
  // [columns, length]
  const Element* b;
  // [rows, columns], for the gradient.
  const Element* grad;
  const Element* distances;
  // [rows, columns], or for the gradient [rows, length].
  Element* result;
  long long rows, columns, length;
};

// A tile has 16 times SIDE rows and columns, and a thread SIDE of each, which are 16 apart.
#define THREADS_ACROSS 16
#define TILE (THREADS_ACROSS * SIDE)
// How many terms are in shared memory. Their sum is added to the total, so that long sums lose few digits.
#define TERMS 16

struct Distances {
  static constexpr bool COLUMNS_SIDE_BY_SIDE = false;

  DEVICE long long terms(const Call& call) const { return call.length; }
  DEVICE long long columns(const Call& call) const { return call.columns; }
  DEVICE Real of_row(const Call& call, long long row, long long term) const { return call.a[row * call.length + term]; }
  DEVICE Real of_column(const Call& call, long long column, long long term) const {
    return call.b[column * call.length + term];
  }
  DEVICE Real own(const Call& call, long long row, long long column) const { return 0; }
  DEVICE Real add(Real of_row, Real of_column, Real own, Real sum) const {
    const Real difference = of_row - of_column;
    return fma(difference, difference, sum);
  }
  DEVICE Real finish(Real sum) const { return sqrt(sum); }
};

// Of each row the sum of the differences from all columns, times the gradients of their distances, over these.
struct Slopes {
  static constexpr bool COLUMNS_SIDE_BY_SIDE = true;

  DEVICE long long terms(const Call& call) const { return call.columns; }
  DEVICE long long columns(const Call& call) const { return call.length; }
  DEVICE Real of_row(const Call& call, long long row, long long term) const {
    const Real distance = call.distances[row * call.columns + term];
    return distance == 0 ? Real(0) : call.grad[row * call.columns + term] / distance;
  }
  DEVICE Real of_column(const Call& call, long long column, long long term) const {
    return call.b[term * call.length + column];
  }
  DEVICE Real own(const Call& call, long long row, long long column) const { return call.a[row * call.length + column]; }
  DEVICE Real add(Real of_row, Real of_column, Real own, Real sum) const { return fma(of_row, own - of_column, sum); }
  DEVICE Real finish(Real sum) const { return sum; }
};

template <class Formula>
DEVICE void add_tiles(const Call& call, const Formula formula) {
  __shared__ Real of_rows[TERMS][TILE + 1];
  __shared__ Real of_columns[TERMS][TILE + 1];
  const long long terms = formula.terms(call), columns = formula.columns(call);
  const long long across = (columns + TILE - 1) / TILE, tiles = (call.rows + TILE - 1) / TILE * across;
  const int x = threadIdx.x % THREADS_ACROSS, y = threadIdx.x / THREADS_ACROSS;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const long long first_row = tile / across * TILE, first_column = tile % across * TILE;
    Real sums[SIDE][SIDE] = {}, own[SIDE][SIDE] = {};
    for (int i = 0; i < SIDE; i++) {
      for (int j = 0; j < SIDE; j++) {
        const long long row = first_row + y + i * THREADS_ACROSS, column = first_column + x + j * THREADS_ACROSS;
        if (row < call.rows && column < columns) own[i][j] = formula.own(call, row, column);
      }
    }
    for (long long start = 0; start < terms; start += TERMS) {
      __syncthreads();
      for (int k = threadIdx.x; k < TILE * TERMS; k += THREADS) {
        int place = k / TERMS, term = k % TERMS;
        const bool row_there = first_row + place < call.rows && start + term < terms;
        of_rows[term][place] = row_there ? formula.of_row(call, first_row + place, start + term) : Real(0);
        if (Formula::COLUMNS_SIDE_BY_SIDE) {
          term = k / TILE;
          place = k % TILE;
        }
        const bool column_there = first_column + place < columns && start + term < terms;
        of_columns[term][place] = column_there ? formula.of_column(call, first_column + place, start + term) : Real(0);
      }
      __syncthreads();
      Real some[SIDE][SIDE] = {};
      for (int term = 0; term < TERMS; term++) {
        for (int i = 0; i < SIDE; i++) {
          const Real row = of_rows[term][y + i * THREADS_ACROSS];
          for (int j = 0; j < SIDE; j++) {
            some[i][j] = formula.add(row, of_columns[term][x + j * THREADS_ACROSS], own[i][j], some[i][j]);
          }
        }
      }
      for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) sums[i][j] += some[i][j];
      }
    }
    for (int i = 0; i < SIDE; i++) {
      for (int j = 0; j < SIDE; j++) {
        const long long row = first_row + y + i * THREADS_ACROSS, column = first_column + x + j * THREADS_ACROSS;
        if (row < call.rows && column < columns) call.result[row * columns + column] = formula.finish(sums[i][j]);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) distances(const Call call) { add_tiles(call, Distances()); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) distance_slopes(const Call call) { add_tiles(call, Slopes()); }
