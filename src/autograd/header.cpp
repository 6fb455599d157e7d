// Reads the properties of a tensor in one call; header.rs says why.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace {

enum Form : uint32_t {
  kUndefined = 1u << 0,
  kSparse = 1u << 1,
  kMkldnn = 1u << 2,
  kOther = 1u << 3,
  kNested = 1u << 4,
  kQuantized = 1u << 5,
  kLazy = 1u << 6,
  kNegatedBoolean = 1u << 7,
};

uint32_t form_of(const at::Tensor& tensor) {
  uint32_t form = 0;
  switch (tensor.layout()) {
    case at::kStrided:
      break;
    case at::kSparse:
    case at::kSparseCsr:
    case at::kSparseCsc:
    case at::kSparseBsr:
    case at::kSparseBsc:
      form |= kSparse;
      break;
    case at::kMkldnn:
      form |= kMkldnn;
      break;
    default:
      form |= kOther;
  }
  if (tensor.is_nested()) form |= kNested;
  if (tensor.is_quantized()) form |= kQuantized;
  // libtorch cannot negate Booleans, so such a tensor cannot be read.
  if (tensor.is_neg() && tensor.scalar_type() == at::kBool) form |= kNegatedBoolean;
  if (tensor._is_zerotensor() || tensor.is_neg() || tensor.is_conj()) form |= kLazy;
  return form;
}

// The layout of `Raw` in header.rs; both change together.
struct Header {
  uint32_t form;
  int32_t kind;
  int32_t device;
  int32_t device_index;
  bool contiguous;
  size_t dims;
  size_t elements;
  const void* data;
  const int64_t* sizes;
  const int64_t* strides;
};

void fill(const at::Tensor& tensor, Header* header) {
  header->kind = static_cast<int32_t>(tensor.scalar_type());
  header->device = static_cast<int32_t>(tensor.device().type());
  header->device_index = tensor.device().index();
  header->contiguous = tensor.is_contiguous();
  header->dims = tensor.sizes().size();
  header->elements = static_cast<size_t>(tensor.numel());
  header->sizes = tensor.sizes().data();
  header->strides = tensor.strides().data();
  // A lazy tensor may have no memory.
  if (header->form == 0) header->data = tensor.const_data_ptr();
}

}  // namespace

extern "C" {

// Whether operations on this type of device choose their kind themselves, and which one products have then.
bool tch_losses_autocast(int device, int* kind) {
  const auto type = static_cast<at::DeviceType>(device);
  *kind = static_cast<int>(at::autocast::get_autocast_dtype(type));
  return at::autocast::is_autocast_enabled(type);
}

void tch_losses_set_autocast(int device, bool enabled, int kind) {
  const auto type = static_cast<at::DeviceType>(device);
  at::autocast::set_autocast_enabled(type, enabled);
  at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(kind));
}

unsigned tch_losses_form(const at::Tensor* tensor) {
  return tensor->defined() ? form_of(*tensor) : unsigned{kUndefined};
}

// Fills the header of a strided tensor. Of any other tensor only the form is set.
void tch_losses_header(const at::Tensor* tensor, Header* header) {
  *header = Header{};
  header->form = tch_losses_form(tensor);
  if ((header->form & ~unsigned{kLazy}) != 0) return;
  try {
    fill(*tensor, header);
  } catch (const std::exception&) {
    // A tensor whose sizes or memory libtorch does not tell.
    *header = Header{};
    header->form = kOther;
  }
}
}
