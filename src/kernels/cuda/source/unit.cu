// Rows of length 1. Numbers are those of the result, of which the rows may have fewer digits.
#if WIDE_RESULT
typedef double Result;
#else
typedef float Result;
#endif

struct Call {
  const Element* rows;
  Result* units;
  // Of each row: its largest |x|, and its length once it is divided by that; what its numbers are divided by.
  Result* divisors;
  const Result* grad;
  Element* gradient;
  long long count, columns;
  // Rows that are shorter are divided by this.
  double least;
  int aligned;
  int unused;
};

#define ALL 0xffffffffu
#define GROUPS (THREADS / GROUP)

// The number of the thread's group among those of all blocks, and how many there are.
DEVICE long long group() { return blockIdx.x * (long long)GROUPS + threadIdx.x / GROUP; }
DEVICE long long groups() { return gridDim.x * (long long)GROUPS; }

DEVICE Result numbers_of(Element element) { return Result(widened(element)); }

// What `fold` makes of the numbers of all threads of a row, for all of them.
template <class T, class Fold>
DEVICE T of_group(T number, Fold fold) {
  return GROUP == WARP ? __shfl_sync(ALL, of_warp(number, fold), 0) : of_block(number, fold, T(0));
}

// Calls `visit` with the place of the first of LENGTH numbers of a row, for those of a thread.
template <int LENGTH, class Visit>
DEVICE void each_pack(const Call& call, long long row, int thread, Visit& visit) {
  for (long long column = thread * LENGTH; column < call.columns; column += GROUP * LENGTH) {
    visit.template at<LENGTH>(call, row * call.columns + column);
  }
}

template <class Visit>
DEVICE void each_number(const Call& call, long long row, int thread, Visit& visit) {
  if (call.aligned) {
    each_pack<PACK>(call, row, thread, visit);
  } else {
    each_pack<1>(call, row, thread, visit);
  }
}

template <int LENGTH>
DEVICE PackOf<Element, LENGTH> rows_at(const Call& call, long long place) {
  return *(const PackOf<Element, LENGTH>*)(call.rows + place);
}

struct Largest {
  Result largest = 0;

  template <int LENGTH>
  DEVICE void at(const Call& call, long long place) {
    const auto pack = rows_at<LENGTH>(call, place);
    for (int i = 0; i < LENGTH; i++) largest = fmax(largest, fabs(numbers_of(pack.elements[i])));
  }
};

struct Squares {
  Result scale;
  double sum = 0;

  template <int LENGTH>
  DEVICE void at(const Call& call, long long place) {
    const auto pack = rows_at<LENGTH>(call, place);
    Result of_pack = 0;
    for (int i = 0; i < LENGTH; i++) {
      const Result scaled = numbers_of(pack.elements[i]) / scale;
      of_pack += scaled * scaled;
    }
    sum += of_pack;
  }
};

struct Divide {
  Result scale, length;

  template <int LENGTH>
  DEVICE void at(const Call& call, long long place) {
    const auto pack = rows_at<LENGTH>(call, place);
    PackOf<Result, LENGTH> units;
    for (int i = 0; i < LENGTH; i++) units.elements[i] = numbers_of(pack.elements[i]) / scale / length;
    *(PackOf<Result, LENGTH>*)(call.units + place) = units;
  }
};

extern "C" __global__ void BOUNDS units(const Call call) {
  const int thread = threadIdx.x % GROUP;
  for (long long row = group(); row < call.count; row += groups()) {
    Largest of;
    each_number(call, row, thread, of);
    const Result largest = of_group(of.largest, Larger());
    const Result scale = largest <= Result(call.least) ? Result(1) : largest;
    Squares squares = {scale};
    each_number(call, row, thread, squares);
    const Result length = Result(sqrt(of_group(squares.sum, Add())));
    // NaN is kept.
    Divide divide = {scale, length < Result(call.least) ? Result(call.least) : length};
    each_number(call, row, thread, divide);
    if (thread != 0) continue;
    call.divisors[2 * row] = scale;
    call.divisors[2 * row + 1] = length;
  }
}

// u · g
struct Along {
  Result scale, length;
  double sum = 0;

  template <int LENGTH>
  DEVICE void at(const Call& call, long long place) {
    const auto pack = rows_at<LENGTH>(call, place);
    const auto grad = *(const PackOf<Result, LENGTH>*)(call.grad + place);
    Result of_pack = 0;
    for (int i = 0; i < LENGTH; i++) of_pack += numbers_of(pack.elements[i]) / scale / length * grad.elements[i];
    sum += of_pack;
  }
};

// (g − u (u · g)) / length
struct Slopes {
  Result scale, length, along;
  bool zeros;

  template <int LENGTH>
  DEVICE void at(const Call& call, long long place) {
    const auto pack = rows_at<LENGTH>(call, place);
    const auto grad = *(const PackOf<Result, LENGTH>*)(call.grad + place);
    PackOf<Element, LENGTH> slopes;
    for (int i = 0; i < LENGTH; i++) {
      const Result unit = numbers_of(pack.elements[i]) / scale / length;
      slopes.elements[i] = narrowed(Real(zeros ? Result(0) : (grad.elements[i] - unit * along) / length / scale));
    }
    *(PackOf<Element, LENGTH>*)(call.gradient + place) = slopes;
  }
};

extern "C" __global__ void BOUNDS units_gradient(const Call call) {
  const int thread = threadIdx.x % GROUP;
  for (long long row = group(); row < call.count; row += groups()) {
    const Result scale = call.divisors[2 * row], own = call.divisors[2 * row + 1], least = Result(call.least);
    const Result length = own < least ? least : own;
    Along along = {scale, length};
    each_number(call, row, thread, along);
    // A row that is shorter than `least` is divided by that constant, so that its gradient has no part along u. One of
    // zeros has no direction, and the gradient 0.
    const Result sum = Result(of_group(along.sum, Add()));
    Slopes slopes = {scale, length, own < least ? Result(0) : sum, own == 0};
    each_number(call, row, thread, slopes);
  }
}
