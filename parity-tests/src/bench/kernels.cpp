// Counts the operations of libtorch for which a GPU would run a kernel, wherever they run. Loaded by the crate's side
// and by Python, so that both are counted by the same rule.
//
// An operation counts where it has a kernel of the device's own; what such a kernel calls does not count. One that is
// composed of others counts as those. Views and empty memory are no work.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

namespace {

using Names = std::vector<std::string>;

// Operations that return memory, or tell something of a tensor, without a view in their signature.
const std::unordered_set<std::string> kNoWork = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::empty_permuted", "aten::resize_", "aten::resize_as_", "aten::set_", "aten::_unsafe_view",
    "aten::unsafe_split", "aten::unsafe_chunk", "aten::_efficientzerotensor", "aten::requires_grad_",
    "aten::set_data", "aten::result_type", "aten::detach", "aten::detach_", "aten::lift", "aten::lift_fresh",
    "aten::as_strided_", "aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_",
};
// Operations without a result on the device for which there is a kernel or a copy all the same.
const std::unordered_set<std::string> kLooks = {"aten::_local_scalar_dense", "aten::equal"};

enum class Work { kNone, kOwn, kOfParts };

bool returns_tensors(const c10::FunctionSchema& schema) {
  for (const auto& value : schema.returns()) {
    const auto type = value.type()->str();
    if (type.find("Tensor") != std::string::npos) return true;
  }
  // An operation in place of a list returns nothing.
  return schema.returns().empty();
}

bool is_view(const c10::FunctionSchema& schema) {
  for (const auto& value : schema.returns()) {
    const auto* alias = value.alias_info();
    if (alias != nullptr && !alias->isWrite()) return true;
  }
  return false;
}

// What an operation is, given whether its parts do work.
Work work_of(const c10::OperatorHandle& op, bool parts_work) {
  const auto& schema = op.schema();
  if (kNoWork.count(schema.name()) > 0) return Work::kNone;
  if (kLooks.count(schema.name()) > 0) return Work::kOwn;
  if (is_view(schema) || !returns_tensors(schema)) return Work::kOfParts;
  if (op.hasKernelForDispatchKey(c10::DispatchKey::CPU)) return Work::kOwn;
  if (parts_work || op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) return Work::kOfParts;
  return Work::kOwn;
}

struct Frame : at::ObserverContext {
  std::optional<c10::OperatorHandle> op;
  Names names;
};

thread_local std::vector<Frame*> frames;
std::mutex guard;
Names found;
std::optional<at::CallbackHandle> handle;

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  auto frame = std::make_unique<Frame>();
  if (const auto name = function.operator_name()) frame->op = c10::Dispatcher::singleton().findOp(*name);
  frames.push_back(frame.get());
  return frame;
}

void leave(const at::RecordFunction&, at::ObserverContext* context) {
  auto* frame = static_cast<Frame*>(context);
  // One that was entered before the callback was there is not among them.
  if (frames.empty() || frames.back() != frame) return;
  frames.pop_back();
  Names names = std::move(frame->names);
  if (frame->op) {
    const auto work = work_of(*frame->op, !names.empty());
    if (work == Work::kNone) names.clear();
    if (work == Work::kOwn) names = {frame->op->schema().name()};
  }
  if (!frames.empty()) {
    auto& outer = frames.back()->names;
    outer.insert(outer.end(), names.begin(), names.end());
    return;
  }
  const std::lock_guard<std::mutex> lock(guard);
  found.insert(found.end(), names.begin(), names.end());
}

}  // namespace

extern "C" {

// Counts from now on, on all threads.
void kernels_start() {
  if (handle) return;
  found.clear();
  handle = at::addGlobalCallback(
      at::RecordFunctionCallback(&enter, &leave).scopes({at::RecordScope::FUNCTION}));
}

// Ends that. The names of the operations, a line each, which stay until the next call.
const char* kernels_stop() {
  static std::string lines;
  if (handle) at::removeCallback(*handle);
  handle.reset();
  const std::lock_guard<std::mutex> lock(guard);
  lines.clear();
  for (const auto& name : found) lines += name + "\n";
  return lines.c_str();
}
}
