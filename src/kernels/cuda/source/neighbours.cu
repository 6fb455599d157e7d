
// Volumes of layers of rows of `width` elements; a plane is a volume of one layer.
struct Call {
  const Element* input;
  // Only for slopes: the extremes, and their gradient.
  const Element* extremes;
  const Element* grad;
  Element* output;
  long long length, layers, rows, width;
};

// The first dimension, of layers, rows and columns, along which there are neighbours: FIRST_AXIS.
#define AXES 3

// Of 32 bits where all places fit: divisions of 64 are slow.
typedef INDEX Index;

// The place of an element in its volume, and how far elements lie apart.
struct Place {
  Index at[AXES], sizes[AXES], strides[AXES];
};

DEVICE Place place_of(const Call& call, Index position) {
  Place place;
  const Index sizes[AXES] = {Index(call.layers), Index(call.rows), Index(call.width)};
  const Index strides[AXES] = {Index(call.rows * call.width), Index(call.width), 1};
#pragma unroll
  for (int axis = 0; axis < AXES; axis++) {
    place.sizes[axis] = sizes[axis];
    place.strides[axis] = strides[axis];
    place.at[axis] = position / strides[axis] % sizes[axis];
  }
  return place;
}

DEVICE bool is_inside(const Place& place, int axis, int step) {
  const Index at = place.at[axis] + step;
  return axis >= FIRST_AXIS ? at >= 0 && at < place.sizes[axis] : step == 0;
}

// Whether a number takes the place of the extreme so far. NaN does, as in libtorch's pooling.
DEVICE bool is_further(Real number, Real extreme) {
  return (ERODE ? number < extreme : number > extreme) || number != number;
}

// The extreme of an element and its direct neighbours along an axis, and where it is, from the element on.
DEVICE Real along(const Call& call, const Place& place, Index position, int axis, Index& from) {
  Real extreme = ERODE ? INFINITE_REAL : -INFINITE_REAL;
  bool none = true;
#pragma unroll
  for (int step = -1; step <= 1; step++) {
    if (!is_inside(place, axis, step)) continue;
    const Real number = widened(call.input[position + step * place.strides[axis]]);
    if (!none && !is_further(number, extreme)) continue;
    extreme = number;
    from = step * place.strides[axis];
    none = false;
  }
  return extreme;
}

// The extreme of an element and all its neighbours, in the order of memory, and where it is.
DEVICE Real around(const Call& call, const Place& place, Index position, Index& from) {
  Real extreme = 0;
  bool none = true;
#pragma unroll 1
  for (int z = FIRST_AXIS > 0 ? 0 : -1; z <= (FIRST_AXIS > 0 ? 0 : 1); z++) {
#pragma unroll 1
    for (int y = -1; y <= 1; y++) {
#pragma unroll
      for (int x = -1; x <= 1; x++) {
        if (!is_inside(place, 0, z) || !is_inside(place, 1, y) || !is_inside(place, 2, x)) continue;
        const Index step = z * place.strides[0] + y * place.strides[1] + x;
        const Real number = widened(call.input[position + step]);
        if (!none && !is_further(number, extreme)) continue;
        extreme = number;
        from = step;
        none = false;
      }
    }
  }
  return extreme;
}

DEVICE Real extreme_of(const Call& call, Index position) {
  const Place place = place_of(call, position);
  Index from;
  if (!ERODE) return around(call, place, position, from);
  Real least = INFINITE_REAL;
#pragma unroll
  for (int axis = FIRST_AXIS; axis < AXES; axis++) {
    const Real own = along(call, place, position, axis, from);
    if (own < least || own != own) least = own;
  }
  return least;
}

extern "C" __global__ void __launch_bounds__(THREADS) extremes(const Call call) {
  const Index thread = blockIdx.x * Index(THREADS) + threadIdx.x, threads = gridDim.x * Index(THREADS);
  for (Index i = thread; i < call.length; i += threads) call.output[i] = narrowed(extreme_of(call, i));
}

// What the gradient of the result at `position`, whose `place` that is, gives to the element that is `step` elements from
// there.
//
// An erosion is min(min(a, b), c) of the minima along each axis. Each minimum of two equal numbers gives half to each: c
// gets one half, and b and a one quarter each.
DEVICE Real share_of(const Call& call, const Place& place, Index position, Index step, Real number) {
  const Real extreme = widened(call.extremes[position]);
  // Most elements are no extreme of their neighbours.
  if (number != extreme && number == number) return 0;
  Index from;
  Real share = widened(call.grad[position]);
  if (!ERODE) {
    around(call, place, position, from);
    return from == step ? share : Real(0);
  }
  Real sum = 0;
  bool none = true, last = false;
#pragma unroll
  for (int axis = AXES - 1; axis >= FIRST_AXIS; axis--) {
    const Real own = along(call, place, position, axis, from);
    if (own != extreme && own == own) continue;
    if (!none) {
      share /= 2;
      if (last) sum += share;
    }
    last = from == step;
    none = false;
  }
  return last ? sum + share : sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) slopes(const Call call) {
  const Index thread = blockIdx.x * Index(THREADS) + threadIdx.x, threads = gridDim.x * Index(THREADS);
  for (Index i = thread; i < call.length; i += threads) {
    const Place place = place_of(call, i);
    const Real number = widened(call.input[i]);
    Real slope = 0;
#pragma unroll 1
    for (int z = -1; z <= 1; z++) {
#pragma unroll 1
      for (int y = -1; y <= 1; y++) {
#pragma unroll 1
        for (int x = -1; x <= 1; x++) {
          if (ERODE && (z != 0) + (y != 0) + (x != 0) > 1) continue;
          if (!is_inside(place, 0, z) || !is_inside(place, 1, y) || !is_inside(place, 2, x)) continue;
          const Index step = z * place.strides[0] + y * place.strides[1] + x;
          Place other = place;
          other.at[0] += z;
          other.at[1] += y;
          other.at[2] += x;
          slope += share_of(call, other, i + step, -step, number);
        }
      }
    }
    call.output[i] = narrowed(slope);
  }
}
