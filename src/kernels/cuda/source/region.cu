
// Pixels [samples, classes, pixels], and a class for each (HARD) or a mask for each class.
struct Call {
  const Element* input;
  const Target* target;
  Element* gradient;
  // For each warp and class: what its pixels add to the intersection, the input's and the target's region. Then for
  // each warp: the cross entropies, the weights in them, and how many threads have met a number out of its range. Then
  // for each sample the sums of these three.
  double* room;
  // For each sample and class.
  double* regions[3];
  double* entropy;
  double* weights;
  bool* valid;
  // Of the classes in the cross entropy; null for 1.
  const double* weight;
  // The gradients of the intersections, of the input's regions and of the cross entropy; null for 0.
  const double* grads[3];
  long long samples, classes, pixels, tiles;
  // The class of ignored pixels, where there is one.
  long long ignored;
  int ignores;
  int unused;
  // The value of ignored elements of masks, else NaN, and the range that probabilities are expected in.
  Real ignored_mask, least, most;
  Real p[PARAMETERS + 1];
};

#define PIXELS 4
#define WARPS (THREADS / WARP)
// The first of the three numbers that all classes of a pixel have in common: two of them are of a cross entropy.
#define FIRST_SCALAR (ENTROPY ? 0 : 2)

// Those of warps, and of samples.
DEVICE double* scalars_of_warps(const Call& call) {
  return call.room + call.samples * call.tiles * WARPS * call.classes * 3;
}
DEVICE double* scalars_of_samples(const Call& call) {
  return scalars_of_warps(call) + call.samples * call.tiles * WARPS * 3;
}

DEVICE Real weight_of(const Call& call, long long c) { return call.weight ? Real(call.weight[c]) : Real(1); }

// The pixels of a thread: their place, and what their softmax needs.
struct Pixels {
  long long sample, pixel[PIXELS];
  // HARD: the class, -1 where it is ignored.
  Real class_of[PIXELS];
  // Whether they are there, and not ignored.
  bool counts[PIXELS];
  Real most[PIXELS], sum[PIXELS];
  bool invalid;

  DEVICE Pixels(const Call& call) {
    sample = blockIdx.x / call.tiles;
    invalid = false;
    for (int k = 0; k < PIXELS; k++) {
      pixel[k] = (blockIdx.x % call.tiles * PIXELS + k) * THREADS + threadIdx.x;
      counts[k] = pixel[k] < call.pixels;
      class_of[k] = -1;
      if (HARD && counts[k]) read_class(call, k);
    }
    if (SOFTMAX) sum_exponentials(call);
  }

  DEVICE void read_class(const Call& call, int k) {
    const long long index = (long long)call.target[sample * call.pixels + pixel[k]];
    const bool ignored = call.ignores && index == call.ignored, known = index >= 0 && index < call.classes;
    invalid |= !ignored && !known;
    counts[k] = !ignored && known;
    if (counts[k]) class_of[k] = Real(index);
  }

  DEVICE long long place(const Call& call, long long c, int k) const {
    return (sample * call.classes + c) * call.pixels + pixel[k];
  }

  DEVICE void sum_exponentials(const Call& call) {
    for (int k = 0; k < PIXELS; k++) {
      most[k] = -INFINITE_REAL;
      sum[k] = 0;
    }
    for (long long c = 0; c < call.classes; c++) {
      for (int k = 0; k < PIXELS; k++) {
        if (!counts[k]) continue;
        const Real x = widened(call.input[place(call, c, k)]);
        const bool larger = x > most[k];
        // Infinities are equal and have no difference.
        const Real factor = x == most[k] ? Real(1) : exp(larger ? most[k] - x : x - most[k]);
        sum[k] = larger ? sum[k] * factor + 1 : sum[k] + factor;
        most[k] = larger ? x : most[k];
      }
    }
  }

  // The probability of an input, and its derivative with respect to that; 1 for a softmax.
  DEVICE Real probability(Real x, int k, Real* slope) const {
    *slope = 1;
    if (SOFTMAX) return exp(x - most[k]) / sum[k];
    if (!SIGMOID) return x;
    const Real e = exp(-fabs(x)), large = 1 / (1 + e), small = e * large;
    *slope = large * small;
    return x >= 0 ? large : small;
  }
};

// What the target gives of a pixel to a class: the number and the key of its share, and its value.
struct Share {
  Real number, key, value;
  bool counts;

  DEVICE Share(const Call& call, const Pixels& pixels, long long c, int k) {
    number = HARD ? pixels.class_of[k] : number_of(call.target[pixels.place(call, c, k)]);
    key = HARD ? Real(c) : call.ignored_mask;
    counts = HARD || number != key;
    value = HARD ? Real(number == key) : counts ? number : Real(0);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) region_sums(const Call call) {
  Pixels pixels(call);
  Real picked[PIXELS] = {}, weights[PIXELS] = {};
  const long long warp = blockIdx.x * (long long)WARPS + threadIdx.x / WARP;
  const bool first = threadIdx.x % WARP == 0;
  for (long long c = 0; c < call.classes; c++) {
    Real sums[3] = {};
    for (int k = 0; k < PIXELS; k++) {
      if (!pixels.counts[k]) continue;
      const Share share(call, pixels, c, k);
      const Real x = widened(call.input[pixels.place(call, c, k)]);
      Real unused;
      const Real p = share.counts ? pixels.probability(x, k, &unused) : Real(0);
      if (!HARD) pixels.invalid |= !(share.value >= 0 && share.value <= 1);
      if (!SOFTMAX && !SIGMOID) pixels.invalid |= p < call.least || p > call.most;
      add_terms(p, share.number, share.key, call.p, sums);
      // An infinite logit of another class is not multiplied by 0.
      if (!ENTROPY || HARD && share.value == 0) continue;
      picked[k] += share.value * (x - pixels.most[k]) * weight_of(call, c);
      weights[k] += share.value * weight_of(call, c);
    }
    for (int i = 0; i < 3; i++) {
      const Real sum = of_warp(sums[i], Add());
      if (first) call.room[(warp * call.classes + c) * 3 + i] = sum;
    }
  }
  double scalars[3] = {0, 0, double(pixels.invalid)};
  for (int k = 0; ENTROPY && k < PIXELS; k++) {
    if (!pixels.counts[k]) continue;
    scalars[0] += weights[k] * log(pixels.sum[k]) - picked[k];
    scalars[1] += weights[k];
  }
  for (int i = FIRST_SCALAR; i < 3; i++) {
    const double sum = of_warp(scalars[i], Add());
    if (first) scalars_of_warps(call)[warp * 3 + i] = sum;
  }
}

// The sums of a sample and a class, which have a block of their own. That of the first class adds up what is of all of
// them: one block for all samples would take longer than all other kernels.
extern "C" __global__ void __launch_bounds__(THREADS) region_totals(const Call call) {
  const long long sample = blockIdx.x / call.classes, c = blockIdx.x % call.classes, warps = call.tiles * WARPS;
  for (int i = 0; i < 3; i++) {
    double sum = 0;
    for (long long warp = threadIdx.x; warp < warps; warp += THREADS) {
      sum += call.room[((sample * warps + warp) * call.classes + c) * 3 + i];
    }
    sum = of_block(sum, Add(), 0.0);
    if (threadIdx.x == 0) call.regions[i][blockIdx.x] = sum;
  }
  for (int i = FIRST_SCALAR; c == 0 && i < 3; i++) {
    double sum = 0;
    for (long long warp = threadIdx.x; warp < warps; warp += THREADS) {
      sum += scalars_of_warps(call)[(sample * warps + warp) * 3 + i];
    }
    sum = of_block(sum, Add(), 0.0);
    if (threadIdx.x == 0) scalars_of_samples(call)[sample * 3 + i] = sum;
  }
}

// What all samples and classes have one of. One block.
extern "C" __global__ void __launch_bounds__(THREADS) region_scalars(const Call call) {
  const double* const of_samples = scalars_of_samples(call);
  double scalars[3] = {};
  for (int i = FIRST_SCALAR; i < 3; i++) {
    for (long long k = threadIdx.x; k < call.samples; k += THREADS) scalars[i] += of_samples[k * 3 + i];
    scalars[i] = of_block(scalars[i], Add(), 0.0);
  }
  if (threadIdx.x != 0) return;
  *call.entropy = scalars[0];
  *call.weights = scalars[1];
  *call.valid = scalars[2] == 0;
}

DEVICE Real grad_of(const double* grads, long long place) { return grads ? Real(grads[place]) : Real(0); }

extern "C" __global__ void BOUNDS_OF_MANY region_gradient(const Call call) {
  const Pixels pixels(call);
  const Real of_entropy = ENTROPY ? grad_of(call.grads[2], 0) : Real(0);
  // Of a softmax the mean of the derivatives over the classes is subtracted, which takes a pass of its own.
  Real mean[PIXELS] = {};
  for (int pass = SOFTMAX ? 0 : 1; pass < 2; pass++) {
    for (long long c = 0; c < call.classes; c++) {
      const long long region = pixels.sample * call.classes + c;
      const Real of_intersection = grad_of(call.grads[0], region), of_size = grad_of(call.grads[1], region);
      const Real of_share = ENTROPY ? of_entropy * weight_of(call, c) : Real(0);
      for (int k = 0; k < PIXELS; k++) {
        if (pixels.pixel[k] >= call.pixels) continue;
        Element* const gradient = call.gradient + pixels.place(call, c, k);
        if (!pixels.counts[k]) {
          if (pass == 1) *gradient = narrowed(Real(0));
          continue;
        }
        const Share share(call, pixels, c, k);
        Real by_input;
        const Real p = pixels.probability(widened(call.input[pixels.place(call, c, k)]), k, &by_input);
        const Real by_p = slope_of(p, share.number, share.key, of_intersection, of_size, call.p);
        const Real own = share.value == 0 ? Real(0) : share.value * of_share;
        if (pass == 0) {
          mean[k] += p * by_p - own;
        } else if (SOFTMAX) {
          *gradient = narrowed(p * (by_p - mean[k]) - own);
        } else {
          *gradient = narrowed(share.counts ? by_p * by_input : Real(0));
        }
      }
    }
  }
}
